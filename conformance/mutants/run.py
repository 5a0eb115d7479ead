"""The kill run: the suite's own tests, under a small derandomised profile, on every mutant."""

from __future__ import annotations

import functools
import importlib
import inspect
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ..failure import Mismatch, Scene
from ..target import Target, load

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

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


def tests() -> list[tuple[str, Callable[[Target], object]]]:
    """Return every test of the suite that needs a target and nothing else, as functions of the target."""
    stems = [*FIRST, *sorted(p.stem for p in HERE.glob("test_ch*.py") if p.stem not in FIRST)]
    found: list[tuple[str, Callable[[Target], object]]] = []
    for stem in stems:
        module = importlib.import_module(f"conformance.{stem}")
        for name, thing in vars(module).items():
            if inspect.isclass(thing) and thing.__module__ == module.__name__ and name.startswith("Test"):
                for method in (m for m in vars(thing) if m.startswith("test_")):
                    found += _expand(f"{stem}::{name}::{method}", getattr(thing(), method))
            elif name.startswith("test_") and callable(thing):
                found += _expand(f"{stem}::{name}", thing)
    return found


def _expand(name: str, test: Callable[..., object]) -> Iterator[tuple[str, Callable[[Target], object]]]:
    """Yield the test for each of its parameters; nothing if it needs no target."""
    cases: list[dict[str, Any]] = [{}]
    for mark in getattr(test, "pytestmark", []):
        names = [n.strip() for n in mark.args[0].split(",")] if isinstance(mark.args[0], str) else list(mark.args[0])
        values = [v if len(names) > 1 else (v,) for v in mark.args[1]]
        cases = [{**case, **dict(zip(names, v, strict=True))} for case in cases for v in values]
    if "target" in inspect.signature(test).parameters:
        for case in cases:
            label = f"[{'-'.join(map(str, case.values()))}]" if case else ""
            yield name + label, functools.partial(test, **case)


def first_failure(target: Target, look: str = "") -> Death | None:
    """Return the first test that fails, or None; those of the clause `look` run first."""
    start = time.perf_counter()
    first = f"Test_{look.replace('.', '_')}_"
    for name, test in sorted(tests(), key=lambda pair: not look or first not in pair[0]):
        try:
            test(target)
        except Mismatch as error:
            text = str(error).splitlines()[0]
            return Death(name, error.clause, time.perf_counter() - start, text.partition(": ")[2])
        except (Exception, pytest.fail.Exception) as error:
            what = f"{type(error).__name__}: {error}".splitlines()[0]
            return Death(name, "", time.perf_counter() - start, what)
    return None


@contextmanager
def without(assertion: str) -> Generator[None]:
    """Run the suite as if the assertion with this text were deleted."""
    require, mismatch = Scene.require, Scene.mismatch

    def lenient(self: Scene, condition: bool, clause: str, what: str, claim: str = "", **facts: Any) -> None:
        if what != assertion:
            require(self, condition, clause, what, claim, **facts)

    Scene.require = lenient
    try:
        yield
    finally:
        Scene.require, Scene.mismatch = require, mismatch


def reference() -> Target:
    """Return the store that mutants are made of."""
    return load("reference")
