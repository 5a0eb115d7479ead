"""What a store tells of itself, and how it lets go: everything but the calls that change its tokens."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from typing import NoReturn, SupportsIndex

import torch
from kiv_reference.errors import KIVNonFiniteError, KIVUsageError, refuse
from kiv_reference.report import AttendReport, TierBytes, TierTokens

from .guard import public
from .shared import Shared
from .state import State
from .trace import BlockTrace


class StoreView:
    """The part of a `FastStore` that only looks."""

    def __init__(self, pool: Shared) -> None:
        self.state: State | None = None
        self._pool, self.guard, self._config = pool, pool.guard, pool.config
        self._pending = 0  # tokens of the last append, if no crop came after it
        self._traces: list[BlockTrace] | None = None
        self._report: AttendReport | None = None
        pool.register(self)

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Refuse to be copied or pickled: a copy would give back what it does not own (SPEC 9.4)."""
        raise refuse(
            KIVUsageError,
            "a store cannot be copied or pickled",
            "a store",
            "Use fork() for a copy in the same pool, and snapshot() for one elsewhere.",
        )

    @property
    def length(self) -> int:
        """T (`LayerStore.length`)."""
        if self.guard.marked or self.guard.broken:  # a change goes on in another thread, or was broken off
            return self._settled_length()
        return self._length

    @public
    def _settled_length(self) -> int:
        self._check_whole()
        return self._length

    @property
    def _length(self) -> int:
        state = self.state  # another thread may let it go meanwhile
        return 0 if state is None else state.length

    @property
    def valid(self) -> torch.Tensor | None:
        """Validity, bool [B, T], or None (`LayerStore.valid`)."""
        state, guard = self.state, self.guard
        if state is None or not state.validity.whole or guard.marked or guard.broken:
            return self._settled_valid()
        return None

    @public
    def _settled_valid(self) -> torch.Tensor | None:
        self._check_whole()
        if self.state is None:
            return None
        valid = self.state.validity.part(0, self._length)
        return None if valid is None or bool(valid.all()) else valid.clone()

    @property
    @public
    def report(self) -> AttendReport:
        """The last attend (`LayerStore.report`).

        Raises
        ------
        KIVUsageError
            Nothing was attended yet.
        """
        self._settled()
        if self._report is None:
            if self._traces is None or self.state is None:
                raise refuse(KIVUsageError, "a report needs an attend before it (SPEC 9.6)", "none", "Call attend.")
            shape, sinks = self.state.shape, self._config.sink_tokens
            self._report = AttendReport(tuple(trace.report(shape, sinks) for trace in self._traces))
        return self._report

    def _turn(self) -> AbstractContextManager[None]:
        """Have the pool to oneself, to read what a snapshot shares with the store."""
        return self.guard.turn()

    def release(self) -> None:
        """Give back everything that is held; of what an interrupt left half changed, the pool counts anew."""
        state = self.state
        if state is None or self._pool.is_broken(state):
            self._forget()
        else:
            with state.cold.account.changing():
                state.release()
                self._forget()
        self._pool.tidy()

    def _forget(self) -> None:
        self.state, self._pending, self._traces, self._report = None, 0, None, None

    def _check(self) -> None:
        """Refuse to go on after `close`, and after an interrupt in the middle of a change."""
        if self._pool.closed or self._pool.ledger.broken:
            self._pool.check_open()
            self._check_whole()

    def _settled(self) -> None:
        """Do the same, and refuse where the last token turns out to be no number: it is gone then (SPEC 2.5)."""
        self._check()
        state = self.state
        if state is not None and state.unsettled:
            self._settle(state)

    def _settle(self, state: State, refused: bool = True) -> None:
        """Learn of the last token; if it is no number it is gone, and that is an error if it was to be `refused`."""
        what = state.settle()
        if what:
            self._pending, self._traces, self._report = 0, None, None
        if what and refused:
            rule = f"every {what} at a valid position must be finite (SPEC 2.5)"
            got = f"NaN or infinity in the last token, at position {state.length}, found after it was appended"
            remedy = "The token is taken back, and what was answered for it means nothing. Use a wider dtype."
            raise refuse(KIVNonFiniteError, rule, got, remedy)

    def _check_whole(self) -> None:
        if self.state is not None and self._pool.is_broken(self.state):
            rule = "a store that was interrupted in the middle of a change is not used again (SPEC 10.4)"
            got = "an exception from outside, in a call of this store or of a fork"
            raise refuse(KIVUsageError, rule, got, "Call reset() and feed the tokens again.")

    def __del__(self) -> None:
        state = self.state
        if state is not None and not sys.is_finalizing():  # then all goes with the process, and imports fail
            self.state = None  # the pool still sees this store
            self.guard.died(state)

    @public
    def memory(self) -> TierBytes:
        """Count bytes by tier; pages shared with a fork count in both (`LayerStore.memory`)."""
        self._check_whole()
        return TierBytes(0, 0, 0) if self.state is None else self.state.memory()

    @public
    def tokens(self) -> TierTokens:
        """Count positions by part (`LayerStore.tokens`)."""
        self._check_whole()
        return TierTokens(0, 0, 0, 0) if self.state is None else self.state.tokens()
