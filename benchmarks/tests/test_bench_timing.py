from __future__ import annotations

import gc

from benchmarks.timing import interleave, median_ms


def test_turns_rotate_and_warmup_is_not_counted() -> None:
    calls: list[str] = []
    taken = interleave({name: lambda number, name=name: calls.append(f"{name}{number}") for name in "abc"}, 2, warmup=1)
    assert calls == ["a0", "b0", "c0", "b1", "c1", "a1", "c2", "a2", "b2"]
    assert {name: len(times) for name, times in taken.items()} == {"a": 2, "b": 2, "c": 2}


def test_garbage_collection_is_off_while_the_clock_runs_and_on_afterwards() -> None:
    seen: list[bool] = []
    interleave({"a": lambda number: seen.append(gc.isenabled())}, 2, warmup=0)
    assert seen == [False, False]
    assert gc.isenabled()


def test_median_is_in_milliseconds() -> None:
    assert median_ms([0.1, 0.3, 0.2]) == 200.0
