"""A decode step of all sequences at once, where the operations have it: which calls they are, and what they look at."""

from __future__ import annotations

import torch

from .ops.decoding import Chosen, Decode, Decoder
from .partition import Block
from .state import State
from .trace import BlockTrace, RowTrace


def decoder_for(state: State, block: Block, bound: bool) -> Decoder | None:
    """Return what answers a block as one step: one token of each sequence, nothing padded, no bound asked for.

    None where the block is for `call.answer`: else, and where cold pages lie where the device cannot read them.
    """
    decoder, config = state.cold.decoder, state.config
    single = block.stop - block.start == 1 and block.stop == state.length and block.mode != "window"
    if decoder is None or not single or bound or config.max_missed_mass is not None:
        return None
    if not state.validity.whole or block.pages != state.pages:
        return None
    if block.mode == "exact" and block.pages * config.page_tokens > config.candidate_tokens:
        return None  # tile by tile
    return decoder if not block.pages or state.cold.arena.table(False) is not None else None


def answer_step(
    state: State,
    decoder: Decoder,
    block: Block,
    query: torch.Tensor,
    scale: float,
    softcap: float | None,
    sink_logits: torch.Tensor | None,
) -> tuple[torch.Tensor, BlockTrace]:
    """Answer one query of each sequence, ``[B, HQ, 1, D]`` in the dtype of the keys.

    Raises
    ------
    KIVBudgetError
        What the step takes for itself does not fit into ``device_bytes``.
    """
    cold, config, recent = state.cold, state.config, state.recent
    rows, size = None, config.page_tokens
    if block.pages:
        key, value = cold.arena.table(False), cold.arena.table(True)
        assert key is not None and value is not None, "a step whose pages cannot be read"
        rows = key, value
    retrieves, index = block.mode == "retrieve", None
    if retrieves:
        assert cold.index is not None and config.retrieve_tokens is not None, "exact mode retrieves nothing"
        index = tuple(table.tensor for table in cold.index.tables)
    asked = Decode(
        query.contiguous(),
        recent.sink_buffers,
        recent.hot_buffers,
        recent.counts,
        state.page_ids(),
        index,
        rows,
        size,
        config.candidate_tokens,
        config.retrieve_tokens or 1,
        config.group == "max",
        config.tail == "mean",
        scale,
        softcap,
        sink_logits,
    )
    state.plan_step(decoder.step_bytes(asked))
    device = state.shape.device

    def take(name: str, shape: tuple[int, ...], dtype: torch.dtype, fill: int | None = None) -> torch.Tensor:
        return cold.scratch.take(name, shape, dtype, device, fill=fill)

    try:
        found = decoder.decode(asked, take)
    except BaseException:
        cold.scratch.drop()
        raise
    return found.output, _trace(state, block, found.estimated, found.chosen)


def _trace(state: State, block: Block, estimated: torch.Tensor, chosen: tuple[Chosen, ...] | None) -> BlockTrace:
    """Note what a step did, and count what it read; what heads read beside C candidates is known when a report asks."""
    shape, cold, trace = state.shape, state.cold, BlockTrace(block)
    groups = estimated.shape[1] // shape.heads
    each: tuple[Chosen | None, ...] = chosen or (None,) * shape.batch
    for part, found in zip(estimated, each, strict=True):
        trace.rows.append(RowTrace(None, groups, part.view(shape.heads, groups), found=found))
    heads = shape.batch * shape.heads
    if chosen is None:
        trace.key_rows = trace.value_rows = heads * block.pages * state.config.page_tokens
        cold.counters.streamed_bytes += trace.key_rows * shape.token_bytes // shape.heads
        return trace
    trace.key_rows, trace.value_rows = heads * chosen[0].count, heads * chosen[0].selected.shape[1]
    cold.counters.key_bytes_gathered += trace.key_rows * shape.key_width * shape.dtype.itemsize
    cold.counters.value_bytes_gathered += trace.value_rows * shape.value_width * shape.dtype.itemsize
    return trace
