"""One lock for each pool: its stores may be used from several threads, since their calls take turns."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Sized
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

if TYPE_CHECKING:
    from .state import State


P = ParamSpec("P")
Out = TypeVar("Out")


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
        self._between_calls, (self._marked, self._broken) = weakref.WeakMethod(between_calls), odd
        self._lock = threading.RLock()
        self._inside = False  # whether the thread that has the lock is in a call
        self._dead: deque[State] = deque()

    def call(self, do: Callable[P, Out], *args: P.args, **kwargs: P.kwargs) -> Out:
        """Run a public call. Public calls do not call each other."""
        with self._lock:
            self._inside = True
            try:
                if (self._dead or self._marked or self._broken) and (between_calls := self._between_calls()):
                    between_calls(self._dead)
                return do(*args, **kwargs)
            finally:
                self._inside = False

    def died(self, left: State) -> None:
        """Release what a store held: now, or before the next call if this thread or another is in one."""
        self._dead.append(left)
        if self._lock.acquire(blocking=False):
            try:
                if not self._inside:
                    self.call(lambda: None)
            finally:
                self._lock.release()


Self = TypeVar("Self")


def locked(method: Callable[Concatenate[Self, P], Out]) -> Callable[Concatenate[Self, P], Out]:
    """Make `method`, of what has the `guard` of a pool, a public call: it has the pool to itself."""

    @wraps(method)
    def call(self: Any, *args: P.args, **kwargs: P.kwargs) -> Out:
        return self.guard.call(method, self, *args, **kwargs)

    return call
