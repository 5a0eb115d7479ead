"""An exception at any line of a call: it came about, or it can be made again (SPEC 10.4)."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import kiv_reference
import pytest
import torch
from kiv_reference import KIVConfig, ReferencePool

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from kiv_reference.report import TierBytes
    from kiv_reference.store import ReferenceStore

SOURCES = os.path.dirname(kiv_reference.__file__)

# Position 63, among the tokens of the second append, is sampled (SPEC 3.2).
CONFIG = KIVConfig(
    hot_tokens=20,
    sink_tokens=1,
    page_tokens=2,
    candidate_tokens=4,
    retrieve_tokens=3,
    prefill="retrieve",
    query_block_tokens=4,
)


class Stop(BaseException):
    """What a signal's handler may raise."""


class Lines:
    """Notes the lines of kiv_reference as they run, and raises at one of them, for the first or the last time."""

    def __init__(self, place: Any = None) -> None:
        self.place, self.seen, self.hit = place, {}, False

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        file = frame.f_code.co_filename
        if not file.startswith(SOURCES):
            return None
        if event == "line":
            line = os.path.basename(file), frame.f_lineno
            self.seen[line] = self.seen.get(line, 0) + 1
            if self.place == (line, self.seen[line]):
                self.hit = True
                raise Stop
        return self._trace

    def __enter__(self) -> Lines:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *error: Any) -> None:
        sys.settrace(None)


KEY, VALUE, QUERY = torch.randn(3, 2, 1, 140, 4, generator=torch.Generator().manual_seed(1)).double()
VALID = torch.ones(2, 60, dtype=torch.bool)
VALID[0, 2] = False


def take(store: ReferenceStore, start: int, stop: int, valid: torch.Tensor | None = None) -> None:
    store.append(KEY[:, :, start:stop], VALUE[:, :, start:stop], valid)


def plain(mask: torch.Tensor | None) -> list[list[bool]] | None:
    return None if mask is None else mask.tolist()


CALLS: dict[str, Callable[[ReferencePool, ReferenceStore], Any]] = {
    "first append": lambda pool, store: take(store, 0, 60, VALID),
    "append": lambda pool, store: take(store, 67, 70),
    "attend": lambda pool, store: store.attend(QUERY[:, :, 60:67], scale=0.5).tolist(),
    "crop": lambda pool, store: store.crop(6),
    "select": lambda pool, store: store.select(torch.tensor([1, 0, 1])),
    "reorder": lambda pool, store: store.reorder(torch.tensor([1, 0])),
    "repeat_interleave": lambda pool, store: store.repeat_interleave(2),
    "fork": lambda pool, store: store.fork(),
    "reset": lambda pool, store: store.reset(),
    "report": lambda pool, store: repr(store.report),
    "valid": lambda pool, store: plain(store.valid),
    "memory": lambda pool, store: (store.memory(), pool.memory()),
    "tokens": lambda pool, store: store.tokens(),
    "close": lambda pool, store: pool.close(),
}


def prepared(name: str) -> tuple[ReferencePool, ReferenceStore]:
    pool = ReferencePool(CONFIG)
    store = pool.layer_store()
    if name != "first append":
        take(store, 0, 60, VALID)
        store.attend(QUERY[:, :, :60], scale=0.5)
        take(store, 60, 67)
    return pool, store


def later(store: ReferenceStore) -> tuple[int, list[Any], list[Any] | None, str, TierBytes]:
    """Return what the store answers next: whether its state is right."""
    length = store.length
    batch = 2 if store.contents is None else store.contents.valid.shape[0]
    key, value, query = (part[:1, :, length : length + 4].expand(batch, -1, -1, -1) for part in (KEY, VALUE, QUERY))
    store.append(key, value)
    told = store.attend(query, scale=0.5).tolist()
    return length, told, plain(store.valid), repr(store.report), store.memory()


def after(name: str, times: Any) -> tuple[Any, ...]:
    """Return what a store answers after a call that was made n times."""
    pool, store = prepared(name)
    told: Any = None
    for _ in range(times):
        told = CALLS[name](pool, store)
    return told, None if name == "close" else later(told if name == "fork" else store)


@pytest.mark.parametrize("name", CALLS)
def test_an_exception_at_any_line(name: str) -> None:
    call, (expected, once) = CALLS[name], after(name, 1)
    twice = once if name == "close" else after(name, 2)[1]
    pool, store = prepared(name)
    with Lines() as lines:
        call(pool, store)
    for place in sorted((line, time) for line, most in lines.seen.items() for time in {1, most}):
        pool, store = prepared(name)
        with suppress(Stop), Lines(place) as tried:
            call(pool, store)
        assert tried.hit, place
        again = call(pool, store)
        assert name == "fork" or again == expected, place
        # An append or a choice that came about, just before the interrupt, is there twice when it is repeated.
        assert name == "close" or later(again if name == "fork" else store) in (once, twice), place
        del again
        if name != "close":
            pool.close()
        assert pool.memory() == (0, 0, 0), place
