"""`FastStore`: keys and values of one layer. The contract tells what each method does (`LayerStore`)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import NoReturn, ParamSpec, Protocol, SupportsIndex, TypeVar

import torch
from kiv_reference.config import KIVConfig
from kiv_reference.errors import KIVBudgetError, KIVUsageError, refuse
from kiv_reference.report import AttendReport, TierBytes, TierTokens

from .call import Call, answer
from .cold import Cold
from .guard import Guard, locked
from .interrupts import REFUSALS
from .partition import blocks
from .shape import Shape, aligned
from .state import State
from .trace import BlockTrace, report
from .validate import (
    check_append,
    check_finite,
    check_modifiers,
    check_query,
    check_rows,
    check_tensor,
    finite_sums,
    integer,
)

P = ParamSpec("P")
Out = TypeVar("Out")


def plain_tensors(method: Callable[P, Out]) -> Callable[P, Out]:
    """Run `method` outside inference mode and autocast, without gradients: a store may go on outside."""
    plain = torch.inference_mode(False)(torch.no_grad()(method))

    @wraps(method)
    def exact(*args: P.args, **kwargs: P.kwargs) -> Out:
        with ExitStack() as stack:
            for kind in ("cpu", "cuda"):  # autocast would round what SPEC 1.2 computes in float32
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            try:
                return plain(*args, **kwargs)
            except RuntimeError as error:
                if "DefaultCPUAllocator" not in str(error):
                    raise
                rule = "a call needs memory of the machine (SPEC 10.2)"
                remedy = "Free memory, hand over fewer tokens at once, or give the cache budgets that it can have."
                raise refuse(KIVBudgetError, rule, f"from torch: {str(error)[-160:]}", remedy) from error

    return exact


class Pool(Protocol):
    """What a store asks of its pool (`FastPool`)."""

    guard: Guard

    @property
    def config(self) -> KIVConfig:
        """The configuration that every store obeys."""
        ...

    def new_store(self) -> FastStore:
        """Make an empty store, within a call that has the lock."""
        ...

    def cold(self, shape: Shape) -> Cold:
        """Make the cold pages of a new store."""
        ...

    def check_open(self) -> None:
        """Refuse to go on after `close`."""
        ...

    def is_broken(self, state: State) -> bool:
        """Whether a change of a store or of one of its forks was interrupted."""
        ...

    def tidy(self) -> None:
        """Free the buffers if no store holds tokens."""
        ...


class FastStore:
    """One layer of a `FastPool`, whose stores may each be used by a thread of its own.

    Parameters
    ----------
    pool : FastPool

    Attributes
    ----------
    guard : Guard
        The pool's.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool, self.guard = pool, pool.guard
        self._config = pool.config
        self._state: State | None = None
        self._pending = 0  # tokens of the last append, if no crop came after it
        self._traces: list[BlockTrace] | None = None
        self._report: AttendReport | None = None

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Refuse to be copied or pickled: a copy would give back what it does not own (SPEC 9.4)."""
        raise refuse(
            KIVUsageError,
            "a store cannot be copied, pickled or saved",
            "a store",
            "Use fork() for a copy in the same pool.",
        )

    @property
    def state(self) -> State | None:
        """What the store holds, None before the first append."""
        return self._state

    @property
    @locked
    def length(self) -> int:
        """T (`LayerStore.length`)."""
        self._check_whole()
        return self._length

    @property
    def _length(self) -> int:
        return 0 if self._state is None else self._state.length

    @property
    @locked
    def valid(self) -> torch.Tensor | None:
        """Validity, bool [B, T], or None (`LayerStore.valid`)."""
        self._check_whole()
        if self._state is None:
            return None
        valid = self._state.validity.part(0, self._length)
        return None if valid is None or bool(valid.all()) else valid.clone()

    @property
    @locked
    def report(self) -> AttendReport:
        """The last attend (`LayerStore.report`)."""
        self._check_whole()
        if self._report is None:
            if self._traces is None or self._state is None:
                raise refuse(KIVUsageError, "a report needs an attend before it (SPEC 9.6)", "none", "Call attend.")
            self._report = report(self._traces, self._traced_shape, self._config.sink_tokens)
        return self._report

    @locked
    @plain_tensors
    def append(self, key: torch.Tensor, value: torch.Tensor, valid: torch.Tensor | None = None) -> None:
        """Add tokens (`LayerStore.append`)."""
        self._check()
        state = self._state
        shape = check_append(key, value, valid, None if state is None else state.shape)
        n = key.shape[2]
        if valid is not None and bool(valid.all()):
            valid = None
        good_keys, finite = finite_sums(key, value)
        if not good_keys:
            check_finite("key", key, valid)
        if valid is not None:
            seen = valid[:, None, :, None]
            key, value = key.masked_fill(~seen, 0), value.masked_fill(~seen, 0)
        finite = finite or bool(torch.isfinite(value).all())
        fresh = state is None
        if state is None:
            state = State(shape, self._config, self._pool.cold(shape))
        with state.cold.account.changing():
            try:
                state.finish()
                state.prepare(n, valid is not None)
                state.append(key, value, valid, finite)
            except REFUSALS:
                if fresh:
                    state.release()
                    self._pool.tidy()
                raise
            self._state, self._pending = state, n

    @locked
    @plain_tensors
    def attend(
        self,
        query: torch.Tensor,
        *,
        scale: float,
        softcap: float | None = None,
        sink_logits: torch.Tensor | None = None,
        bound: bool = False,
    ) -> torch.Tensor:
        """Answer queries (`LayerStore.attend`)."""
        self._check()
        state = self._state
        shape = check_query(query, None if state is None else state.shape, self._pending)
        assert state is not None, "a shape without a state"
        sinks = check_modifiers(query, scale, softcap, sink_logits, bound)
        valid = state.validity.part(state.length - self._pending, state.length)
        if not all(finite_sums(query)):
            check_finite("query", query, valid)
        if valid is not None:
            query = torch.where(valid[:, None, :, None], query, query.nan_to_num(0.0, 0.0, 0.0))  # SPEC 2.4
        grouped = aligned(query.to(shape.compute)).unflatten(1, (shape.heads, -1))
        sinks = None if sinks is None else sinks.to(shape.compute).unflatten(1, (shape.heads, -1))
        call = Call(grouped, sinks, scale, softcap, bound)
        account = state.cold.account
        try:
            with account.changing():
                state.begin(grouped, valid)
            output, traces = self._answer(state, call, query.dtype)
            with account.changing():
                state.finish()
        except BaseException:
            if not account.marked:  # else it is refused until `reset`
                with account.changing():
                    state.take_back()
            raise
        self._traces, self._report, self._traced_shape = traces, None, shape
        return output

    def _answer(self, state: State, call: Call, dtype: torch.dtype) -> tuple[torch.Tensor, list[BlockTrace]]:
        """The output of a call, and what it did."""
        batch, heads, groups, count, _ = call.query.shape
        size = batch, heads * groups, count, state.shape.value_width
        output = torch.empty(size, dtype=dtype, device=state.shape.device)
        traces: list[BlockTrace] = []
        for block in blocks(self._config, state.length, count):
            with state.cold.account.changing():
                state.evict(block.pages)
            trace = BlockTrace(block)
            for row in range(batch):
                answer(state, call, trace, row, state.length - count, output[row])
            traces.append(trace)
        return output, traces

    @locked
    @plain_tensors
    def crop(self, length: int) -> None:
        """Keep the first tokens (`LayerStore.crop`)."""
        self._check()
        length = integer("length", length)
        if not 0 <= length <= self._length:
            rule = f"crop needs a length in 0..{self._length} (SPEC 9.2)"
            raise refuse(KIVUsageError, rule, length, "A store cannot be made longer; append instead.")
        if self._state is None:
            self._pending = 0
            return
        with self._state.cold.account.changing():
            self._state.crop(length)
            self._pending = 0

    @locked
    def reorder(self, rows: torch.Tensor) -> None:
        """Permute or copy sequences (`LayerStore.reorder`)."""
        self._select(rows, same_size=True)

    @locked
    def select(self, rows: torch.Tensor) -> None:
        """Choose sequences (`LayerStore.select`)."""
        self._select(rows, same_size=False)

    @locked
    def repeat_interleave(self, repeats: int) -> None:
        """Repeat sequences (`LayerStore.repeat_interleave`)."""
        self._check()
        repeats = integer("repeats", repeats)
        if repeats < 1:
            rule = "repeats must be 1 or more (SPEC 9.3)"
            raise refuse(KIVUsageError, rule, repeats, "Use reset() to empty a store.")
        if self._state is not None:
            self._replace([row for row in range(self._state.shape.batch) for _ in range(repeats)])

    @plain_tensors
    def _select(self, rows: torch.Tensor, same_size: bool) -> None:
        self._check()
        check_tensor("rows", rows)
        if self._state is not None:
            self._replace(check_rows(rows, self._state.shape.batch, same_size))

    def _replace(self, rows: list[int]) -> None:
        assert self._state is not None, "nothing to select from"
        with self._state.cold.account.changing():
            chosen = self._state.select(rows)
            self._state.release()
            self._state = chosen

    @locked
    @plain_tensors
    def fork(self) -> FastStore:
        """An independent store that shares the pages (`LayerStore.fork`)."""
        self._check()
        copy = self._pool.new_store()
        if self._state is not None:
            with self._state.cold.account.changing():
                copy._state = self._state.select(list(range(self._state.shape.batch)))
        copy._pending, copy._traces, copy._report = self._pending, self._traces, self._report
        if self._traces is not None:
            copy._traced_shape = self._traced_shape
        return copy

    @locked
    def reset(self) -> None:
        """Forget everything (`LayerStore.reset`)."""
        self._pool.check_open()
        self.release()

    def release(self) -> None:
        """Give back everything that is held; of what an interrupt left half changed, the pool counts anew."""
        state = self._state
        if state is None or self._pool.is_broken(state):
            self._forget()
        else:
            with state.cold.account.changing():
                state.release()
                self._forget()
        self._pool.tidy()

    def _forget(self) -> None:
        self._state, self._pending, self._traces, self._report = None, 0, None, None

    def _check(self) -> None:
        """Refuse to go on after `close`, and after an interrupt in the middle of a change."""
        self._pool.check_open()
        self._check_whole()

    def _check_whole(self) -> None:
        if self._state is not None and self._pool.is_broken(self._state):
            rule = "a store that was interrupted in the middle of a change is not used again (SPEC 10.4)"
            got = "an exception from outside, in a call of this store or of a fork"
            raise refuse(KIVUsageError, rule, got, "Call reset() and feed the tokens again.")

    def __del__(self) -> None:
        state = getattr(self, "_state", None)
        if state is not None:
            self._state = None  # the pool still sees this store
            self.guard.died(state)

    @locked
    def memory(self) -> TierBytes:
        """Bytes by tier; pages shared with a fork count in both (`LayerStore.memory`)."""
        self._check_whole()
        return TierBytes(0, 0, 0) if self._state is None else self._state.memory()

    @locked
    def tokens(self) -> TierTokens:
        """Positions by part (`LayerStore.tokens`)."""
        self._check_whole()
        return TierTokens(0, 0, 0, 0) if self._state is None else self._state.tokens()
