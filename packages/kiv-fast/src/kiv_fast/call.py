"""One block for one sequence: which queries count, how they are answered, where the output goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from .attention.exact import attend_exactly
from .ops.arguments import Queries, Tile
from .partition import Block
from .retrieval.block import attend_block
from .retrieval.bound import window_bound
from .retrieval.candidates import View
from .state import State
from .trace import BlockTrace, RowTrace

FEW_QUERIES = 8
"""Up to so many queries of a head a tile of pages is attended where it lies: for more, fused attention is faster."""


@dataclass(frozen=True)
class Call:
    """What `attend` was asked.

    Attributes
    ----------
    query : [H, G, TQ, D] of each sequence, in the dtype of computation
    sinks : [B, H, G, TQ], optional
    scale, softcap, bound : as for `LayerStore.attend`
    remaining : int, optional
        Tokens of the prompt that later calls bring.
    """

    query: tuple[torch.Tensor, ...]
    sinks: torch.Tensor | None
    scale: float
    softcap: float | None
    bound: bool
    remaining: int | None


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
    if valid is None or bool(valid.all()):
        _answer_some(state, call, trace, row, first, output, None)
        return
    if bool(valid.any()):
        _answer_some(state, call, trace, row, first, output, valid)
    else:
        count = block.stop - block.start
        trace.rows.append(RowTrace.empty(state.shape, call.query[row].shape[1], count, call.bound))
    # The others apart: neither counted nor reported (SPEC 2.4).
    _answer_some(state, replace(call, bound=False), BlockTrace(block), row, first, output, ~valid)


def _answer_some(
    state: State, call: Call, trace: BlockTrace, row: int, first: int, output: torch.Tensor, mine: torch.Tensor | None
) -> None:
    """Answer the queries `mine`, bool ``[TQ]`` of the block, or all of them; the others' output stays as it is."""
    block = trace.block
    query, sinks = call.query[row], None if call.sinks is None else call.sinks[row]
    if block.stop - block.start < query.shape[2]:
        at = slice(block.start - first, block.stop - first)
        query, sinks, output = query[:, :, at], None if sinks is None else sinks[:, :, at], output[:, at]
    out = output
    if mine is not None:
        query, sinks = query[:, :, mine], None if sinks is None else sinks[:, :, mine]
        out = output.new_empty(output.shape[0], query.shape[2], output.shape[2])
    queries = Queries(query, block.start, mine, call.scale, call.softcap, sinks)
    if block.mode == "exact":
        estimated = _exact(state, row, queries, block, out)
        rows = state.shape.heads * state.rows[row].tokens(block.pages)
        trace.key_rows += rows
        trace.value_rows += rows
        noted = RowTrace(mine, query.shape[1], estimated, torch.zeros_like(estimated) if call.bound else None)
    else:
        noted = _retrieve(state, call, trace, row, queries, out)
    if mine is not None:
        output[:, mine] = out
    trace.rows.append(noted)


def _retrieve(state: State, call: Call, trace: BlockTrace, row: int, queries: Queries, out: torch.Tensor) -> RowTrace:
    """Answer by retrieval, or by sinks and hot tokens alone."""
    block, among, groups = trace.block, queries.among, queries.query.shape[1]
    view = _view(state, row, block.pages, block.stop)
    if block.mode == "window":
        estimated = state.cold.ops.attend(queries, view.always, state.finite, None, False, out)
        return RowTrace(among, groups, estimated, window_bound(view, queries) if call.bound else None)
    result = attend_block(view, queries, call.bound, out)
    trace.key_rows += result.key_rows
    trace.value_rows += result.value_rows
    estimated, missed, streamed = result.estimated, result.missed, result.streamed
    if streamed is not None and bool(streamed.any()):
        whole = torch.empty_like(out)
        _exact(state, row, queries, block, whole)
        pick = streamed[:, None]
        out.copy_(torch.where(streamed.repeat_interleave(groups)[:, None, None], whole, out))
        estimated = estimated.masked_fill(pick, 0)
        missed = None if missed is None else missed.masked_fill(pick, 0)
    return RowTrace(among, groups, estimated, missed, result.found, streamed)


def _exact(state: State, row: int, queries: Queries, block: Block, out: torch.Tensor) -> torch.Tensor:
    """Full attention, its output in `out`; the estimated share of mass, ``[H, M]``: none."""
    stop = block.stop if queries.among is None else int(queries.positions[-1]) + 1
    few = queries.query.shape[2] <= FEW_QUERIES and block.pages <= state.tile_pages
    if few and state.cold.ops.in_place:
        cold = [state.whole_tile(row, block.pages)] if block.pages else []
        always = [*state.tiles(row, block.pages, stop), *cold]
        return state.cold.ops.attend(queries, always, state.finite, None, False, out)
    tiles, chunk = _all_tiles(state, row, block.pages, stop), state.cold.tuning.query_chunk
    output = attend_exactly(queries, tiles, state.shape.value_width, state.finite, chunk)
    out.copy_(output.view(out.shape))
    return output.new_zeros(output.shape[:2])


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
    index = state.cold.page_index(table, pages, unseen)
    return View(state.cold, table, index, table.tokens(pages), state.tiles(row, pages, stop), state.finite)
