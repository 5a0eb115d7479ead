"""Public calls: each has its pool to itself, and works on plain tensors, whatever is around it.

One lock for each pool: its stores may be used from several threads, since their calls take turns.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Sized
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import torch
from kiv_reference.errors import KIVBudgetError, refuse

if TYPE_CHECKING:
    from .state import State


P = ParamSpec("P")
Out = TypeVar("Out")
Self = TypeVar("Self")


CARRYING = threading.RLock()
"""Of a store that takes pages out of another pool: it comes before the locks of both, so that two never wait for each
other."""


class Guard:
    """The lock of a pool, and what dead stores have left to be released under it.

    Parameters
    ----------
    between_calls : bound method of the pool
        Releases what dead stores held, at the latest when the next call begins.
    odd : containers, any of which has something in it where a change was broken off
        Only then, or with a dead store, is there something to do between calls.

    Notes
    -----
    Garbage collection runs in any thread at any allocation, inside a call of the same thread too, where a lock that a
    thread may take twice is no protection: so what dies is queued, and released where no call is half-way.
    """

    def __init__(self, between_calls: Callable[[deque[State]], None], odd: tuple[Sized, Sized]) -> None:
        self._between_calls, (self.marked, self.broken) = weakref.WeakMethod(between_calls), odd
        self.lock = threading.RLock()
        self.inside = False  # whether the thread that has the lock is in a call
        self.dead: deque[State] = deque()

    def clear_up(self) -> None:
        """Do what is to be done between two calls."""
        between_calls = self._between_calls()
        if between_calls is not None:
            between_calls(self.dead)

    @contextmanager
    def turn(self) -> Generator[None, None, None]:
        """Have the pool to oneself, in a call or outside of one: nothing is released meanwhile."""
        with self.lock:
            before, self.inside = self.inside, True
            try:
                yield
            finally:
                self.inside = before

    def died(self, left: State) -> None:
        """Release what a store held: now, or before the next call if this thread or another is in one."""
        self.dead.append(left)
        if self.lock.acquire(blocking=False):
            try:
                if not self.inside:
                    self.inside = True
                    try:
                        self.clear_up()
                    finally:
                        self.inside = False
            finally:
                self.lock.release()


@contextmanager
def _without_autocast() -> Generator[None, None, None]:
    """Leave autocast, which would round what SPEC 1.2 computes in float32."""
    with ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def public(method: Callable[Concatenate[Self, P], Out]) -> Callable[Concatenate[Self, P], Out]:
    """Make `method`, of what has the `guard` of a pool, a public call. Public calls do not call each other."""

    @wraps(method)
    def call(self: Any, *args: P.args, **kwargs: P.kwargs) -> Out:
        guard: Guard = self.guard
        with guard.lock:
            guard.inside = True
            try:
                if guard.dead or guard.marked or guard.broken:
                    guard.clear_up()
                if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
                    with _without_autocast(), torch.inference_mode(False), torch.no_grad():
                        return method(self, *args, **kwargs)
                if torch.is_grad_enabled() or torch.is_inference_mode_enabled():
                    with torch.inference_mode(False), torch.no_grad():
                        return method(self, *args, **kwargs)
                return method(self, *args, **kwargs)  # as `generate` calls it
            except RuntimeError as error:
                if "DefaultCPUAllocator" not in str(error):
                    raise
                rule = "a call needs memory of the machine (SPEC 10.2)"
                remedy = "Free memory, hand over fewer tokens at once, or give the cache budgets that it can have."
                raise refuse(KIVBudgetError, rule, f"from torch: {str(error)[-160:]}", remedy) from error
            finally:
                guard.inside = False

    return call
