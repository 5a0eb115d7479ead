"""One block for one sequence: which queries count, how they are answered, where the output goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, groupby
from typing import cast

import torch

from .attention.exact import attend_by_tile, attend_exactly
from .ops.arguments import Queries, Tile
from .retrieval.block import attend_block
from .retrieval.bound import window_bound
from .retrieval.candidates import View
from .state import State
from .tokens import ALL
from .trace import BlockTrace, RowTrace

FEW_QUERIES = 8
"""Up to this many queries of a head attend a tile of pages where it lies; for more, fused attention is faster."""


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


def make_cold(state: State, pages: int) -> None:
    """Have this many pages out of the hot window, where they are not yet."""
    if pages > state.pages:
        with state.cold.account.changing():
            state.evict(pages)


def answer_alone(state: State, call: Call, trace: BlockTrace, first: int, output: torch.Tensor) -> None:
    """Answer a block, each sequence for itself; `output` ``[B, HQ, TQ, DV]`` is of the whole call (`answer`)."""
    make_cold(state, trace.block.pages)
    for row in range(state.shape.batch):
        answer(state, call, trace, row, first, output[row])


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
        stop = block.stop if mine is None else int(queries.positions[-1]) + 1
        estimated = _exact(state, row, queries, block.pages, state.tiles(row, block.pages, stop), out)
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
    view = view_of(state, row, block.pages, block.stop)
    if block.mode == "window":
        estimated = state.cold.ops.attend(queries, view.always, state.finite, None, False, out)
        return RowTrace(among, groups, estimated, window_bound(view, queries) if call.bound else None)
    result = attend_block(view, queries, call.bound, out)
    trace.key_rows += result.key_rows
    trace.value_rows += result.value_rows
    estimated, missed, streamed = result.estimated, result.missed, result.streamed
    for heads in () if streamed is None else runs(cast("list[bool]", streamed.tolist())):
        always = [tile.of_heads(heads) for tile in view.always]
        mine = out[heads.start * groups : heads.stop * groups]
        _exact(state, row, queries.of_heads(heads), block.pages, always, mine, heads)
    if streamed is not None:
        estimated = estimated.masked_fill(streamed[:, None], 0)
        missed = None if missed is None else missed.masked_fill(streamed[:, None], 0)
    return RowTrace(among, groups, estimated, missed, result.found, streamed)


def runs(marks: list[bool]) -> Iterator[slice]:
    """Yield the stretches in which all are marked."""
    for marked, run in groupby(range(len(marks)), marks.__getitem__):
        places = list(run)
        if marked:
            yield slice(places[0], places[-1] + 1)


def _exact(
    state: State, row: int, queries: Queries, pages: int, always: list[Tile], out: torch.Tensor, heads: slice = ALL
) -> torch.Tensor:
    """Attend fully to `always` and to pages for some heads, into `out`; return the estimated share ``[H, M]``, 0."""
    ops, finite, width = state.cold.ops, state.finite, state.shape.value_width
    if queries.query.shape[2] <= FEW_QUERIES and ops.in_place:
        if pages <= state.tile_pages:
            return ops.attend(queries, [*always, *state.paged_tiles(row, pages, heads)], finite, None, False, out)
        output = attend_by_tile(queries, chain(state.paged_tiles(row, pages, heads), always), width, finite, ops)
    else:

        def tiles() -> Iterator[Tile]:
            return chain(state.cold_tiles(row, pages, heads), always)

        output = attend_exactly(queries, tiles, width, finite, state.cold.tuning.query_chunk, state.shape.dtype)
    out.copy_(output.view(out.shape))
    return output.new_zeros(output.shape[:2])


def view_of(state: State, row: int, pages: int, stop: int) -> View:
    """Gather what a block before position `stop` sees of one sequence, of which `pages` pages are cold."""
    table, start, unseen = state.rows[row], state.config.sink_tokens, None
    if table.padded:
        valid = state.validity.row(row, start, start + pages * state.config.page_tokens)
        unseen = None if valid is None else ~valid
    index = state.cold.page_index(table, pages, unseen)
    return View(state.cold, table, index, table.tokens(pages), state.tiles(row, pages, stop), state.finite)
