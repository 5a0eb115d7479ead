"""The kill run: the suite's own tests, under a small derandomised profile, on every mutant."""

from __future__ import annotations

import importlib
import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..failure import Mismatch, Scene
from ..target import Target, load

HERE = Path(__file__).parent.parent
FIRST = ("test_ch11_equality", "test_machine", "test_ch02_state", "test_ch10_tiers", "test_ch09_life_cycle")
"""These reach most of a store, so most mutants die early."""


@dataclass(frozen=True)
class Death:
    """How a mutant died."""

    test: str
    clause: str
    seconds: float
    assertion: str


def tests() -> list[tuple[str, Callable[[Target], None]]]:
    """Every test of the suite that needs a target and nothing else, as functions of the target."""
    stems = [*FIRST, *sorted(p.stem for p in HERE.glob("test_ch*.py") if p.stem not in FIRST)]
    found: list[tuple[str, Callable[[Target], None]]] = []
    for stem in stems:
        module = importlib.import_module(f"conformance.{stem}")
        for name, thing in vars(module).items():
            if inspect.isclass(thing) and thing.__module__ == module.__name__ and name.startswith("Test"):
                for method in vars(thing):
                    if method.startswith("test_") and not getattr(vars(thing)[method], "pytestmark", None):
                        found.append((f"{stem}::{name}::{method}", getattr(thing(), method)))
            elif name.startswith("test_") and callable(thing):
                found.append((f"{stem}::{name}", thing))
    return [(name, test) for name, test in found if list(inspect.signature(test).parameters) == ["target"]]


def first_failure(target: Target) -> Death | None:
    """The first test that fails, or None."""
    start = time.perf_counter()
    for name, test in tests():
        try:
            test(target)
        except Mismatch as error:
            text = str(error).splitlines()[0]
            return Death(name, error.clause, time.perf_counter() - start, text.partition(": ")[2])
        except Exception as error:
            what = f"{type(error).__name__}: {error}".splitlines()[0]
            return Death(name, "", time.perf_counter() - start, what)
    return None


@contextmanager
def without(assertion: str) -> Iterator[None]:
    """The suite as if the assertion with this text were deleted."""
    require, mismatch = Scene.require, Scene.mismatch

    def lenient(self: Scene, condition: bool, clause: str, what: str, **facts: Any) -> None:
        if what != assertion:
            require(self, condition, clause, what, **facts)

    Scene.require = lenient
    try:
        yield
    finally:
        Scene.require, Scene.mismatch = require, mismatch


def reference() -> Target:
    """The store that mutants are made of."""
    return load("reference")
