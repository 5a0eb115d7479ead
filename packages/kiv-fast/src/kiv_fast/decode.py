"""A decode step of all sequences at once, where the operations have it: which calls they are, and what they look at."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from .call import Call, view_of
from .cold import Cold
from .ops.arguments import Queries
from .ops.decoding import Chosen, Decode, Decoded, Decoder
from .partition import Block, blocks
from .retrieval.bound import chosen_bound
from .state import State
from .trace import BlockTrace, RowTrace


def step_for(state: State, queries: int, remaining: int | None) -> Step | None:
    """Return how a call of one query is answered as one step of all sequences.

    None where it is not: where tokens are padded, a bound is kept, or cold pages lie where the device cannot read them.
    """
    decoder, config = state.decoder, state.config
    if decoder is None or queries != 1 or config.max_missed_mass is not None or not state.validity.whole:
        return None
    (block,) = blocks(config, state.length, 1, remaining)
    if block.mode == "window" or block.pages < state.pages:
        return None
    if block.mode == "exact" and block.pages * config.page_tokens > config.candidate_tokens:
        return None  # tile by tile
    return Step(decoder, block) if not block.pages or state.cold.arena.table(False) is not None else None


@dataclass(frozen=True)
class Buffers:
    """Memory for a step (`Take`)."""

    cold: Cold
    device: torch.device

    @property
    def version(self) -> int:
        """Another one once a buffer lies elsewhere; neither number ever goes back."""
        return self.cold.scratch.version + self.cold.aside.version

    def __call__(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype, fill: int | None = None, aside: bool = False
    ) -> torch.Tensor:
        """Return memory of a shape."""
        scratch = self.cold.aside if aside else self.cold.scratch
        return scratch.take(name, shape, dtype, self.device, fill=fill)


@dataclass(frozen=True)
class Step:
    """One query of each sequence: a block of its own, answered by a decoder."""

    decoder: Decoder
    block: Block

    def answer(self, state: State, call: Call, query: torch.Tensor) -> tuple[torch.Tensor, BlockTrace]:
        """Answer a query ``[B, HQ, 1, D]`` in the dtype of the keys: the output, and what was done.

        Raises
        ------
        KIVBudgetError
            What the step takes for itself does not fit into ``device_bytes``.
        """
        if self.block.pages > state.pages:
            with state.cold.account.changing():
                state.evict(self.block.pages)
        if state.cold.kept is not None:
            state.cold.keep_rows(len(state.rows))
        asked, cold, flags = self._asked(state, call, query), state.cold, state.flags
        assert flags is not None, "a decoder without flags"
        state.plan_step(self.decoder.step_bytes(asked), self.decoder.held_bytes(asked))
        if cold.kept is None and asked.kept is not None:  # it made room for the step
            asked = replace(asked, kept=None)
        try:
            found = self.decoder.decode(asked, Buffers(cold, state.shape.device))
        except BaseException:
            cold.scratch.drop()
            cold.aside.drop()
            if cold.kept is not None:
                cold.kept.empty()
            raise
        flags.note()
        return found.output, self._trace(state, call, found)

    def _asked(self, state: State, call: Call, query: torch.Tensor) -> Decode:
        cold, config, recent = state.cold, state.config, state.recent
        rows = index = None
        if self.block.pages:
            key, value = cold.arena.table(False), cold.arena.table(True)
            assert key is not None, "a step whose pages cannot be read"
            assert value is not None, "keys that can be read beside values that cannot"
            rows = key, value
        if self.block.mode == "retrieve":
            assert cold.index is not None, "exact mode retrieves nothing"
            index = tuple(table.tensor for table in cold.index.tables)
        assert state.flags is not None, "a decoder without flags"
        assert state.lengths is not None, "a decoder without lengths"
        state.lengths.tell((*recent.counts, self.block.pages))
        return Decode(
            query=query.contiguous(),
            sinks=recent.sink_buffers,
            hot=recent.hot_buffers,
            counts=state.lengths.words,
            pages=self.block.pages,
            ids=state.page_ids(),
            index=index,
            rows=rows,
            kept=None if rows is None or cold.kept is None else cold.kept.kept,
            page_tokens=config.page_tokens,
            candidates=config.candidate_tokens,
            selected=config.retrieve_tokens or 1,
            group_max=config.group == "max",
            tail=config.tail == "mean",
            scale=call.scale,
            softcap=call.softcap,
            sink_logits=None if call.sinks is None else call.sinks.reshape(query.shape[:2]),
            odd=state.flags.words,
        )

    def _trace(self, state: State, call: Call, found: Decoded) -> BlockTrace:
        """Note what was done, and count what was read; what heads read beside C candidates is known to a report."""
        shape, cold, chosen = state.shape, state.cold, found.chosen
        trace = BlockTrace(self.block, hits=found.hits)
        groups = found.estimated.shape[1] // shape.heads
        for row, part in enumerate(found.estimated):
            mine, estimated = None if chosen is None else chosen[row], part.view(shape.heads, groups)
            missed = self._missed(state, call, row, mine) if call.bound else None
            trace.rows.append(RowTrace(None, groups, estimated, missed, mine))
        heads = shape.batch * shape.heads
        if chosen is None:
            trace.key_rows = trace.value_rows = heads * self.block.pages * state.config.page_tokens
            cold.counters.streamed_bytes += trace.key_rows * shape.token_bytes // shape.heads
            return trace
        trace.key_rows, trace.value_rows = heads * chosen[0].count, heads * chosen[0].selected.shape[1]
        cold.counters.key_bytes_gathered += trace.key_rows * shape.key_width * shape.dtype.itemsize
        cold.counters.value_bytes_gathered += trace.value_rows * shape.value_width * shape.dtype.itemsize
        return trace

    def _missed(self, state: State, call: Call, row: int, chosen: Chosen | None) -> torch.Tensor:
        """Return the missed bound of one sequence, ``[H, G]`` (SPEC 6.2)."""
        query, block = call.query[row], self.block
        if chosen is None:
            return query.new_zeros(query.shape[:2])
        sinks = None if call.sinks is None else call.sinks[row]
        queries = Queries(query, block.start, None, call.scale, call.softcap, sinks)
        return chosen_bound(view_of(state, row, block.pages, block.stop), queries, chosen)
