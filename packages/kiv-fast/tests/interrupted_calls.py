"""Calls of a store in which an exception comes at a line, and what must hold then."""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

import kiv_fast
import torch
from fast_helpers import SCALE, draw
from faulty_disk import Faulty
from kiv_fast import FastPool
from kiv_reference.errors import KIVUsageError
from saved_pages import saved

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from kiv_fast.store import FastStore
    from kiv_reference import KIVConfig
    from kiv_reference.snapshot import Snapshot

SOURCES = os.path.dirname(kiv_fast.__file__)
NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
SHARE = 1 if NIGHTLY else 20
"""One place in this many is tried; a place is the first or the last time that a call comes to a line."""


class Stop(BaseException):
    """What a signal's handler may raise."""


ERRORS = [Stop, KeyboardInterrupt, TimeoutError, RuntimeError]

DATA = draw(3, 70, batch=2)
VALID = torch.ones(2, 30, dtype=torch.bool)
VALID[0, 4] = False

FIRST = "first append", "restore", "restore lasting"
"""Calls of an empty store."""

Line = tuple[str, int]
"""A file and a number."""


class Lines:
    """Count the lines of kiv_fast as they run, and raise at one of them."""

    def __init__(self, place: tuple[Line, int] | None = None, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.place, self.error, self.hit = place, error, False
        self.seen: dict[Line, int] = {}

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        # Python itself goes on after an exception in a finalizer: `__del__`, and what tables call to be unpinned.
        file = frame.f_code.co_filename
        if not file.startswith(SOURCES) or frame.f_code.co_name == "__del__" or file.endswith("pinning.py"):
            return None
        if event == "line":
            line = os.path.basename(file), frame.f_lineno
            self.seen[line] = self.seen.get(line, 0) + 1
            if self.place == (line, self.seen[line]):
                self.hit = True
                raise self.error
        return self._trace

    def __enter__(self) -> Lines:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *error: Any) -> None:
        sys.settrace(None)


def take(store: FastStore, start: int, stop: int, valid: torch.Tensor | None = None) -> None:
    store.append(DATA[0][:, :, start:stop], DATA[1][:, :, start:stop], valid)


def answer(store: FastStore, start: int, stop: int) -> torch.Tensor:
    return store.attend(DATA[2][:, :, start:stop], scale=SCALE)


@cache
def state(config: KIVConfig, lasting: bool) -> Snapshot:
    """Return the state of another store, whose pages are in files or not."""
    store = FastPool(dataclasses.replace(config, ram_bytes=None)).layer_store()
    take(store, 0, 30, VALID)
    answer(store, 0, 30)
    snapshot = saved(store)[0] if lasting else store.snapshot()
    assert snapshot is not None
    return snapshot


def numbers(store: FastStore) -> tuple[Any, ...]:
    """Return the state of a store as numbers."""
    snapshot = store.snapshot()
    assert snapshot is not None
    pages = [snapshot.read_pages(values, 0, len(snapshot.cold)).tolist() for values in (False, True)]
    index = snapshot.cold.index(0, len(snapshot.cold))
    assert index is not None
    return snapshot.pages.tolist(), snapshot.key.tolist(), pages, {name: part.tolist() for name, part in index.items()}


RESTORED = "of restored pages"

CALLS: dict[str, Callable[[FastPool, FastStore], Any]] = {
    "first append": lambda pool, store: take(store, 0, 30, VALID),
    "append": lambda pool, store: take(store, 40, 49),
    "attend": lambda pool, store: answer(store, 30, 40),
    "crop": lambda pool, store: store.crop(21),
    "select": lambda pool, store: store.select(torch.tensor([1, 0, 1])),
    "reorder": lambda pool, store: store.reorder(torch.tensor([1, 0])),
    "repeat_interleave": lambda pool, store: store.repeat_interleave(2),
    "fork": lambda pool, store: store.fork(),
    "reset": lambda pool, store: store.reset(),
    "report": lambda pool, store: store.report,
    "valid": lambda pool, store: store.valid,
    "memory": lambda pool, store: (store.memory(), pool.memory()),
    "tokens": lambda pool, store: store.tokens(),
    "snapshot": lambda pool, store: numbers(store),
    "restore": lambda pool, store: store.length or store.restore(state(pool.config, False)),
    "restore lasting": lambda pool, store: store.length or store.restore(state(pool.config, True)),
    f"attend {RESTORED}": lambda pool, store: answer(store, 30, 40),
    f"crop {RESTORED}": lambda pool, store: store.crop(21),
    f"snapshot {RESTORED}": lambda pool, store: numbers(store),
    "close": lambda pool, store: pool.close(),
}


def prepared(config: KIVConfig, name: str) -> tuple[FastPool, FastStore, FastStore]:
    """Return a pool with a store, amid a call, and an older fork of it."""
    pool = FastPool(config, Faulty())
    store = pool.layer_store()
    if name in FIRST:
        return pool, store, store.fork()
    if name.endswith(RESTORED):
        store.restore(state(config, True))
    else:
        take(store, 0, 30, VALID)
        answer(store, 0, 30)
    fork = store.fork()
    take(store, 30, 40)
    return pool, store, fork


def disk_of(pool: FastPool) -> Faulty:
    """Return the disk that `prepared` gave a pool."""
    assert isinstance(pool._io, Faulty)
    return pool._io


def plain(told: Any) -> Any:
    """Return them as numbers."""
    if dataclasses.is_dataclass(told):
        return [plain(getattr(told, field.name)) for field in dataclasses.fields(told)]
    if isinstance(told, tuple):
        return [plain(part) for part in told]
    return told.tolist() if isinstance(told, torch.Tensor) else told


def later(store: FastStore) -> tuple[Any, ...]:
    """Return what the store answers next: whether its state is right."""
    length = store.length
    batch = 2 if store.state is None else store.state.shape.batch
    key, value, query = (part[:1, :, length : length + 3].expand(batch, -1, -1, -1) for part in DATA)
    store.append(key, value)
    return length, store.attend(query, scale=SCALE).tolist(), plain(store.valid)


def refused(do: Callable[[], Any]) -> tuple[Any, bool]:
    """Return what a call returns, and whether the store says that it must be reset."""
    try:
        return do(), False
    except KIVUsageError as error:
        if "interrupted in the middle of a change" in str(error) and "Call reset()" in str(error):
            return None, True
        raise


class Calls:
    """One call, made without an interrupt: what it should come to."""

    def __init__(self, config: KIVConfig, name: str) -> None:
        self.config, self.name, self.call = config, name, CALLS[name]
        self.call(*prepared(config, name)[:2])  # what a process does once for all
        pool, store, fork = prepared(config, name)
        with Lines() as lines:
            result = self.call(pool, store)
        self.told = None if name == "fork" else plain(result)
        self.places = sorted((line, time) for line, most in lines.seen.items() for time in {1, most})
        self.ends = []
        if name != "close":
            self.fork = later(fork)
            self.ends.append(later(result if name == "fork" else store))
            # An append or a choice that came about, just before the interrupt, is there twice when it is repeated.
            pool, store, _ = prepared(config, name)
            self.call(pool, store)
            self.call(pool, store)
            self.ends.append(later(store))

    def interrupted(self, place: tuple[Line, int], error: type[BaseException]) -> bool:
        """Raise at a place, make the call again, and look at everything. Returns whether it was refused then."""
        pool, store, fork = prepared(self.config, self.name)
        with suppress(error), Lines(place, error) as lines:
            self.call(pool, store)
        assert lines.hit
        assert pool.memory() == (0, 0, 0) or self.name not in FIRST or store.state is not None
        again, broken = refused(lambda: self.call(pool, store))
        if self.name != "close":
            if not broken:
                assert self.told is None or plain(again) == self.told
                assert later(again if self.name == "fork" else store) in self.ends
            del again
            told, left = refused(lambda: later(fork))
            # A broken store does not refuse its reset, and a fork of an empty one shares nothing with it.
            assert left == broken or self.name in ("reset", *FIRST)
            assert left or told == self.fork
            store.reset()
            fork.reset()
            assert pool.memory() == (0, 0, 0)
            assert not disk_of(pool).open
            take(store, 0, 30, VALID)
            answer(store, 0, 30)
        pool.close()
        assert pool.memory() == (0, 0, 0)
        assert not disk_of(pool).open
        return broken

    def try_some(self, share: int) -> int:
        """Raise at one place in `share`, with each class of error in turn. Returns how often a store was broken."""
        tries = zip(self.places[::share], itertools.cycle(ERRORS), strict=False)
        return sum(self.interrupted(place, error) for place, error in tries)
