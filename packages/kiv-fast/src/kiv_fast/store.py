"""`FastStore`: keys and values of one layer. The contract tells what each method does (`LayerStore`)."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from kiv_reference.checks import (
    check_append,
    check_finite,
    check_modifiers,
    check_query,
    check_remaining,
    check_rows,
    check_tensor,
    integer,
)
from kiv_reference.errors import KIVUsageError, refuse
from kiv_reference.snapshot import Snapshot
from kiv_reference.snapshot_checks import check_snapshot

from .call import Call, answer_alone
from .cold import Cold
from .decode import Step, step_for
from .guard import CARRYING, public
from .interrupts import REFUSALS
from .partition import blocks
from .shape import Shape, aligned
from .snapshots import restore, snapshot_of
from .state import State
from .store_view import StoreView
from .together import answer_blocks
from .trace import BlockTrace


class FastStore(StoreView):
    """One layer of a `FastPool`, whose stores may each be used by a thread of its own."""

    @public
    def append(self, key: torch.Tensor, value: torch.Tensor, valid: torch.Tensor | None = None) -> None:
        """Add tokens (`LayerStore.append`)."""
        self._check()
        state = self.state
        if state is not None and state.unsettled:
            self._settle(state)
        shape = Shape(*check_append(key, value, valid, None if state is None else state.shape))
        if valid is not None and bool(valid.all()):
            valid = None
        if state is not None and valid is None and state.can_put(key, value):
            self._put(state, key, value)
            return
        good_keys, finite = self._pool.ops.of(shape).finite(key, value)
        if not good_keys:
            check_finite("key", key, valid)
        if valid is not None:
            seen = valid[:, None, :, None]
            key, value = key.masked_fill(~seen, 0), value.masked_fill(~seen, 0)
        finite = finite or bool(torch.isfinite(value).all())
        fresh = state is None
        if state is None:
            state = State(shape, self._config, Cold(shape, self._pool.resources(shape.device)))
        with state.cold.account.changing():
            try:
                state.prepare(key.shape[2], valid is not None)
                state.append(key, value, valid, finite)
            except REFUSALS:
                if fresh:
                    state.release()
                    self._pool.tidy()
                raise
            self.state, self._pending = state, key.shape[2]

    def _put(self, state: State, key: torch.Tensor, value: torch.Tensor) -> None:
        """Add tokens that are written where they stay, and looked at there."""
        with state.cold.account.changing():
            state.prepare(key.shape[2], False)
            good_keys = state.put(key, value)
            if good_keys:
                self._pending = key.shape[2]
        if not good_keys:
            check_finite("key", key, None)

    @public
    def attend(
        self,
        query: torch.Tensor,
        *,
        scale: float,
        softcap: float | None = None,
        sink_logits: torch.Tensor | None = None,
        bound: bool = False,
        remaining_prompt_tokens: int | None = None,
    ) -> torch.Tensor:
        """Answer queries (`LayerStore.attend`)."""
        self._check()
        state = self.state
        check_query(query, None if state is None else state.shape, self._pending)
        assert state is not None, "a query that was checked without a state"
        shape = state.shape
        sinks = check_modifiers(query, scale, softcap, sink_logits, bound)
        remaining = check_remaining(remaining_prompt_tokens)
        step = None if state.cold.decoder is None else step_for(state, query.shape[2], remaining)
        late = step is not None and state.late
        if state.unsettled and not late:
            self._settle(state)
        valid, wide = state.validity.part(state.length - self._pending, state.length), query
        if not late or bound or state.samples_due:
            wide = aligned(query.to(shape.compute))  # torch may round otherwise where memory begins elsewhere
        if not late and not all(state.cold.ops.finite(wide)):
            check_finite("query", query, valid)
        if valid is not None:
            wide = torch.where(valid[:, None, :, None], wide, wide.nan_to_num(0.0, 0.0, 0.0))  # SPEC 2.4
        batch, heads, count, width = query.shape
        grouped = shape.heads, heads // shape.heads, count
        if sinks is not None:
            sinks = sinks.to(shape.compute).view(batch, *grouped)
        rows = (wide.view(*grouped, width),) if batch == 1 else wide.view(batch, *grouped, width).unbind()
        call = Call(rows, sinks, scale, softcap, bound, remaining)
        account = state.cold.account
        try:
            if state.samples_due:
                with account.changing():
                    state.begin(wide.view(batch, *grouped, width), valid)
            else:
                state.begin()
            output, traces = self._answer(state, call, query, step)
            if state.unfinished:
                with account.changing():
                    state.finish()
        except BaseException:
            if not account.marked:  # else it is refused until `reset`
                with account.changing():
                    state.take_back()
            raise
        self._traces, self._report = traces, None
        return output

    def _answer(
        self, state: State, call: Call, query: torch.Tensor, step: Step | None
    ) -> tuple[torch.Tensor, list[BlockTrace]]:
        """Compute the output of a call, and note what it did."""
        if step is not None:
            output, trace = step.answer(state, call, query)
            return output, [trace]
        batch, heads, count, _ = query.shape
        output = query.new_empty(batch, heads, count, state.shape.value_width)
        cut, first = blocks(self._config, state.length, count, call.remaining), state.length - count
        if len(cut) > 1 or state.cold.together:
            return output, answer_blocks(state, call, cut, first, output)
        trace = BlockTrace(cut[0])
        answer_alone(state, call, trace, first, output)
        return output, [trace]

    @public
    def crop(self, length: int) -> None:
        """Keep the first tokens (`LayerStore.crop`).

        Raises
        ------
        KIVUsageError
            `length` is no length that the store has.
        """
        self._check()
        length, state = integer("length", length), self.state
        if state is not None and state.unsettled:
            self._settle(state, refused=not 0 <= length < state.length)  # else what may be refused goes anyway
        if not 0 <= length <= self._length:
            rule = f"crop needs a length in 0..{self._length} (SPEC 9.2)"
            raise refuse(KIVUsageError, rule, length, "A store cannot be made longer; append instead.")
        if self.state is None:
            self._pending = 0
            return
        with self.state.cold.account.changing():
            self.state.crop(length)
            self._pending = 0

    @public
    def reorder(self, rows: torch.Tensor) -> None:
        """Permute or copy sequences (`LayerStore.reorder`)."""
        self._select(rows, same_size=True)

    @public
    def select(self, rows: torch.Tensor) -> None:
        """Choose sequences (`LayerStore.select`)."""
        self._select(rows, same_size=False)

    @public
    def repeat_interleave(self, repeats: int) -> None:
        """Repeat sequences (`LayerStore.repeat_interleave`).

        Raises
        ------
        KIVUsageError
            `repeats` is less than 1.
        """
        self._settled()
        repeats = integer("repeats", repeats)
        if repeats < 1:
            rule = "repeats must be 1 or more (SPEC 9.3)"
            raise refuse(KIVUsageError, rule, repeats, "Use reset() to empty a store.")
        if self.state is not None:
            self._replace([row for row in range(self.state.shape.batch) for _ in range(repeats)])

    def _select(self, rows: torch.Tensor, same_size: bool) -> None:
        self._settled()
        check_tensor("rows", rows)
        if self.state is not None:
            self._replace(check_rows(rows, self.state.shape.batch, same_size))

    def _replace(self, rows: list[int]) -> None:
        assert self.state is not None, "nothing to select from"
        with self.state.cold.account.changing():
            chosen = self.state.select(rows)
            self.state.release()
            self.state = chosen

    @public
    def fork(self) -> FastStore:
        """Make an independent store that shares the pages (`LayerStore.fork`)."""
        self._settled()
        copy = FastStore(self._pool)
        if self.state is not None:
            with self.state.cold.account.changing():
                copy.state = self.state.select(list(range(self.state.shape.batch)))
        copy._pending, copy._traces, copy._report = self._pending, self._traces, self._report
        return copy

    @public
    def snapshot(self) -> Snapshot | None:
        """Return the state (`LayerStore.snapshot`)."""
        self._settled()
        return None if self.state is None else snapshot_of(self.state, self._turn)

    def restore(self, snapshot: Snapshot) -> None:
        """Take a state (`LayerStore.restore`)."""
        with nullcontext() if snapshot.cold.lasting else CARRYING:
            self._restore(snapshot)

    @public
    def _restore(self, snapshot: Snapshot) -> None:
        self._check()
        check_snapshot(snapshot, self._config, empty=self.state is None)
        shape = Shape(*snapshot.shape)
        state = State(shape, self._config, Cold(shape, self._pool.resources(shape.device)))
        with state.cold.account.changing():
            try:
                restore(state, snapshot)
            except REFUSALS:
                state.release()
                self._pool.tidy()
                raise
            self.state, self._pending, self._traces, self._report = state, 0, None, None

    @public
    def reset(self) -> None:
        """Forget everything (`LayerStore.reset`)."""
        self._pool.check_open()
        self.release()
