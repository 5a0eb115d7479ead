"""Query blocks, and sequences, that are answered in the same launches: each alone is too little work for a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .call import Call, answer_alone, make_cold
from .memory.scratch import heads_together
from .ops.arguments import Queries, Tile
from .pages.block_table import BlockTable
from .partition import Block, alike
from .retrieval.block import Result, attend_block
from .retrieval.candidates import View
from .state import State
from .trace import BlockTrace, RowTrace

WITH_BOUND = 3
"""So many times the memory takes a block whose missed mass is bounded, in float64 (SPEC 6.2)."""


class Share(NamedTuple):
    """How many are answered together: of several sequences all blocks."""

    blocks: int
    sequences: int


def answer_blocks(state: State, call: Call, cut: Sequence[Block], first: int, output: torch.Tensor) -> list[BlockTrace]:
    """Answer the blocks of a call in all sequences, as many as possible at a time; note what was done.

    Parameters
    ----------
    first : int
        Position of the call's first query.
    output : [B, HQ, TQ, DV]
        Where the answers of the whole call go.
    """
    traces = list[BlockTrace]()
    for some in alike(cut):
        mine = [BlockTrace(block) for block in some]
        if len(some) > 1 and some[0].mode == "exact" and state.validity.whole:
            _answer_exactly(state, call, mine, first, output)
        else:
            _answer_alike(state, call, mine, first, output)
        traces += mine
    return traces


def _answer_exactly(state: State, call: Call, traces: Sequence[BlockTrace], first: int, output: torch.Tensor) -> None:
    """Answer consecutive exact blocks, whose queries see whatever comes before them, wherever it is by then."""
    shape, groups, block = state.shape, call.query[0].shape[1], traces[0].block
    answer_alone(state, call, BlockTrace(block._replace(stop=traces[-1].block.stop)), first, output)
    for trace in traces:
        members = groups * (trace.block.stop - trace.block.start)
        none = torch.zeros(shape.heads, members, device=shape.device)
        trace.rows += [RowTrace(None, groups, none, none if call.bound else None)] * shape.batch
        trace.key_rows = shape.batch * shape.heads * trace.block.pages * state.config.page_tokens
        trace.value_rows = trace.key_rows


def _answer_alike(state: State, call: Call, traces: Sequence[BlockTrace], first: int, output: torch.Tensor) -> None:
    """Answer consecutive blocks that differ in their positions alone."""
    share, block = share_of(state, call, traces), traces[0].block
    if share is None:
        for trace in traces:
            answer_alone(state, call, trace, first, output)
        return
    make_cold(state, block.pages)
    batch = state.shape.batch
    for begin in range(0, len(traces), share.blocks):
        some = traces[begin : begin + share.blocks]
        for row in range(0, batch, share.sequences):
            _answer_some(state, call, some, slice(row, min(row + share.sequences, batch)), first, output)


def share_of(state: State, call: Call, traces: Sequence[BlockTrace]) -> Share | None:
    """Return how many blocks and sequences are answered together; None where each block is answered for itself."""
    block, config, shape = traces[0].block, state.config, state.shape
    if not state.cold.together or block.mode != "retrieve" or config.max_missed_mass is not None:
        return None
    if not state.validity.whole:
        return None
    members = call.query[0].shape[1] * (block.stop - block.start)
    members *= WITH_BOUND if call.bound else 1
    heads = heads_together(shape, config, state.cold.tuning, members, block.pages)
    blocks = min(len(traces), max(1, heads // shape.heads))
    return Share(blocks, max(1, heads // (shape.heads * blocks)) if blocks == len(traces) else 1)


def _answer_some(
    state: State, call: Call, traces: Sequence[BlockTrace], rows: slice, first: int, output: torch.Tensor
) -> None:
    """Answer blocks of the sequences `rows` in the same launches."""
    block, blocks, heads = traces[0].block, len(traces), state.shape.heads
    at = slice(block.start - first, traces[-1].block.stop - first)
    query, sinks = _apart(call.query[rows], at, blocks), None
    if call.sinks is not None:
        sinks = _apart([part[..., None] for part in call.sinks[rows]], at, blocks)[..., 0]
    queries = Queries(query, block.start, None, call.scale, call.softcap, sinks, blocks)
    groups, count, width = query.shape[1], query.shape[2], output.shape[3]
    out = output[rows, :, at].view(-1, heads, groups, blocks, count, width).transpose(2, 3)
    result = attend_block(_view(state, rows, block.pages, traces), queries, call.bound, out)
    for number, trace in enumerate(traces):
        for start in range(number, len(query), heads * blocks):
            _note(trace, result, slice(start, start + heads * blocks, blocks), state, groups)


def _note(trace: BlockTrace, result: Result, mine: slice, state: State, groups: int) -> None:
    """Note what a block did in one sequence, whose heads are `mine`."""
    assert result.found is not None, "a block without a cold token"
    found, few = result.found, min(state.config.candidate_tokens, result.found.width)
    late = 0 if found.widened is None else len({*found.late}.intersection(range(mine.start, mine.stop, mine.step)))
    width = found.width if late else few
    told = found.told(mine, width)
    trace.key_rows += len(told.at) * few + late * (width - few)
    trace.value_rows += told.chosen.numel()
    missed = None if result.missed is None else result.missed[mine]
    trace.rows.append(RowTrace(None, groups, result.estimated[mine], missed, told))


def _apart(rows: Sequence[torch.Tensor], at: slice, blocks: int) -> torch.Tensor:
    """Copy what sequences ``[H, G, TQ, X]`` have at some queries: ``[H of all, G, TQ of a block, X]`` (`Queries`)."""
    heads, groups, _, width = rows[0].shape
    shape = heads, groups, blocks, (at.stop - at.start) // blocks, width
    return torch.stack([row[:, :, at].view(shape).transpose(1, 2) for row in rows]).flatten(0, 2)


def _view(state: State, rows: slice, pages: int, traces: Sequence[BlockTrace]) -> View:
    """Gather what the blocks see; each query is kept from later tokens by its position."""
    table = BlockTable.joined(state.rows[rows], pages)
    every = [state.tiles(row, pages, traces[-1].block.stop) for row in range(rows.start, rows.stop)]
    tiles = every[0] if len(every) == 1 else [_tile(parts) for parts in zip(*every, strict=True)]
    tokens, index = pages * state.config.page_tokens, state.cold.page_index(table, pages, None)
    return View(state.cold, table, index, tokens, tiles, state.finite, len(traces))


def _tile(parts: Sequence[Tile]) -> Tile:
    """Copy what several sequences have at the same positions, as the heads of one."""
    key, value = torch.cat([part.key for part in parts]), torch.cat([part.value for part in parts])
    return parts[0]._replace(keys=key[None], values=value[None], row=0, start=0)
