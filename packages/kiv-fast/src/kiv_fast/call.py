"""One block for one sequence: which queries count, how they are answered, where the output goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from .attention.exact import attend_exactly
from .attention.softmax import Attended, Queries, Tile, always_parts, attend_parts
from .partition import Block
from .retrieval.block import Result, attend_block
from .retrieval.bound import missed_bound
from .retrieval.candidates import View
from .state import State
from .trace import BlockTrace, RowTrace


@dataclass(frozen=True)
class Call:
    """What `attend` was asked.

    Attributes
    ----------
    query : [B, H, G, TQ, D], in the dtype of computation
    sinks : [B, H, G, TQ], optional
    scale, softcap, bound : as for `LayerStore.attend`
    """

    query: torch.Tensor
    sinks: torch.Tensor | None
    scale: float
    softcap: float | None
    bound: bool


def answer(state: State, call: Call, trace: BlockTrace, row: int, first: int, output: torch.Tensor) -> None:
    """Answer a block's queries of one sequence.

    Parameters
    ----------
    first : int
        Position of the call's first query.
    output : [HQ, TQ, DV]
        Where the answers of the whole call in this sequence go.
    """
    block = trace.block
    valid = state.validity.row(row, block.start, block.stop)
    if valid is None:
        _answer_some(state, call, trace, row, first, output, None)
        return
    _answer_some(state, call, trace, row, first, output, valid)
    if not bool(valid.all()):  # the others, apart: neither counted nor reported (SPEC 2.4)
        apart = replace(call, bound=False)
        _answer_some(state, apart, BlockTrace(block), row, first, output, ~valid)


def _answer_some(
    state: State, call: Call, trace: BlockTrace, row: int, first: int, output: torch.Tensor, mine: torch.Tensor | None
) -> None:
    """Answer the queries `mine`, bool ``[TQ]`` of the block, or all of them; the others' output stays as it is."""
    block, bound = trace.block, call.bound
    at = slice(block.start - first, block.stop - first)
    query = call.query[row, :, :, at]
    sinks = None if call.sinks is None else call.sinks[row, :, :, at]
    heads, groups, count, _ = query.shape
    positions = torch.arange(block.start, block.stop, device=query.device)
    if mine is not None:
        positions = positions[mine]
        query = query[:, :, mine]
        sinks = None if sinks is None else sinks[:, :, mine]
    queries = Queries(query, positions, block.start, call.scale, call.softcap, sinks)
    missed: torch.Tensor | None = None
    result: Result | None = None
    if positions.numel() == 0:
        zeros = query.new_zeros(heads, 0)
        attended = Attended(query.new_zeros(heads, 0, state.shape.value_width), zeros, zeros)
        missed = zeros
    elif block.mode == "exact":
        attended, missed = _exact(state, row, queries, block, mine is None)
        rows = heads * int(state.rows[row].counts.array[: block.pages].sum())
        trace.key_rows += rows
        trace.value_rows += rows
    else:
        view = _view(state, row, block.pages, block.stop)
        if block.mode == "window":
            own = None if sinks is None else sinks.flatten(1, 2)
            parts = always_parts(queries, view.always, state.cold.scratch)
            attended = attend_parts(parts, [], own, state.finite)
            if bound:
                missed = missed_bound(view, queries, None)
        else:
            result = attend_block(view, queries, bound)
            attended, missed = result.attended, result.missed
            trace.key_rows += result.key_rows
            trace.value_rows += result.value_rows
            if result.streamed is not None and bool(result.streamed.any()):
                whole, none = _exact(state, row, queries, block, mine is None)
                pick = result.streamed[:, None]
                attended = Attended(
                    torch.where(pick[:, :, None], whole.output, attended.output),
                    torch.where(pick, whole.exact, attended.exact),
                    torch.where(pick, whole.estimated, attended.estimated),
                )
                missed = None if missed is None else torch.where(pick, none, missed)

    def place(part: torch.Tensor) -> torch.Tensor:
        part = part.unflatten(1, (groups, positions.numel()))
        if mine is None:
            return part
        whole = part.new_zeros(heads, groups, count, *part.shape[3:])
        whole[:, :, mine] = part
        return whole

    found = place(attended.output).flatten(0, 1)
    if mine is None:
        output[:, at] = found
    else:
        output[:, at][:, mine] = found[:, mine].to(output.dtype)
    trace.rows.append(
        RowTrace(
            None if result is None else result.candidates,
            None if result is None else result.selected,
            None if result is None else result.widened,
            None if result is None else result.streamed,
            place(attended.exact),
            place(attended.estimated),
            place(missed) if bound and missed is not None else None,
        )
    )


def _exact(state: State, row: int, queries: Queries, block: Block, whole: bool) -> tuple[Attended, torch.Tensor]:
    """Full attention, and a missed bound of zero; `whole` if the queries are all of the block."""
    stop = block.stop if whole else int(queries.positions[-1]) + 1
    tiles, chunk = _all_tiles(state, row, block.pages, stop), state.cold.tuning.query_chunk
    output = attend_exactly(queries, tiles, state.shape.value_width, state.finite, chunk)
    zeros = output.new_zeros(output.shape[:2])
    return Attended(output, zeros + 1, zeros), zeros


def _all_tiles(state: State, row: int, pages: int, stop: int) -> Iterator[Tile]:
    """Every token before position `stop`, under a partition of so many pages."""
    for first in range(0, pages, state.tile_pages):
        yield state.cold_tile(row, first, min(first + state.tile_pages, pages))
    yield from state.tiles(row, pages, stop)


def _view(state: State, row: int, pages: int, stop: int) -> View:
    table, start, unseen = state.rows[row], state.config.sink_tokens, None
    if table.padded:
        valid = state.validity.row(row, start, start + pages * state.config.page_tokens)
        unseen = None if valid is None else ~valid
    tokens = int(table.counts.array[:pages].sum())
    return View(state.cold, table, pages, tokens, list(state.tiles(row, pages, stop)), unseen, state.finite)
