"""An exception at any line of a call: it came about or can be made again, or the store refuses by name until reset."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from faulty_disk import Faulty, Method
from interrupted_calls import (
    CALLS,
    RESTORED,
    SHARE,
    VALID,
    Calls,
    Line,
    Lines,
    Stop,
    answer,
    prepared,
    refused,
    take,
)
from kiv_fast import FastPool, interrupts

if TYPE_CHECKING:
    from pathlib import Path

    from kiv_reference import KIVConfig


@pytest.fixture(params=[None, 16_000], ids=["RAM", "disk"])
def small(request: pytest.FixtureRequest, config: KIVConfig, tmp_path: Path) -> KIVConfig:
    tiers = {} if request.param is None else {"ram_bytes": request.param, "spill_dir": tmp_path}
    return dataclasses.replace(config, prefill="retrieve", query_block_tokens=8, **tiers)


@pytest.mark.parametrize("name", CALLS)
def test_an_exception_at_any_line(small: KIVConfig, name: str) -> None:
    calls = Calls(small, name)
    broken = calls.try_some(SHARE if small.ram_bytes is None else 2 * SHARE)
    if name in ("report", "valid", "memory", "tokens", "close"):
        assert not broken


READING = "absent.py", "saved.py"


def reading(calls: Calls) -> list[tuple[Line, int]]:
    """Return the places of a call where pages are read that were saved."""
    return [place for place in calls.places if place[0][0] in READING]


@pytest.mark.parametrize("name", [name for name in CALLS if name.endswith(RESTORED)])
def test_an_exception_wherever_saved_pages_are_read(small: KIVConfig, name: str) -> None:
    calls = Calls(small, name)
    calls.places = reading(calls)
    assert calls.places
    calls.try_some(1)


def test_no_block_counts_as_read_before_it_is(config: KIVConfig) -> None:
    name = f"attend {RESTORED}"
    for place in reading(Calls(config, name)):
        pool, store, _ = prepared(config, name)
        with suppress(Stop), Lines(place, Stop):
            CALLS[name](pool, store)
        assert store.state is not None
        absent = store.state.cold.arena._absent  # pyright: ignore[reportAttributeAccessIssue]
        assert absent is None or absent.count >= sum(int(flags.sum()) for flags in absent._flags)


@pytest.mark.parametrize("name", ["append", "crop", "select", "reset"])
def test_without_the_mark_it_goes_wrong(small: KIVConfig, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(small, name)
    monkeypatch.setattr(interrupts.Change, "__enter__", lambda self: None)
    with pytest.raises((AssertionError, LookupError, RuntimeError, ValueError)):
        calls.try_some(SHARE // 2)


def test_a_store_that_was_interrupted_refuses_all_but_reset_and_others_go_on(small: KIVConfig) -> None:
    pool, store, fork = prepared(small, "append")
    other = pool.layer_store()
    take(other, 0, 30, VALID)
    place = next(place for place in Calls(small, "append").places if place[0][0] == "window.py")
    with suppress(Stop), Lines(place, Stop):
        take(store, 40, 49)
    for broken in (store, fork):
        assert refused(lambda broken=broken: broken.length) == (None, True)  # at once: nothing has looked before it
        assert refused(lambda broken=broken: broken.valid) == (None, True)
        for name in CALLS.keys() - {"reset", "memory", "close"}:
            assert refused(lambda name=name, broken=broken: CALLS[name](pool, broken)) == (None, True), name
        assert refused(broken.memory) == (None, True)
    assert answer(other, 0, 30).shape == (2, 4, 30, 16)
    held = pool.memory()
    store.reset()
    assert pool.memory() == held  # as long as the fork has not let go
    fork.reset()
    take(store, 0, 30, VALID)
    assert answer(store, 0, 30).tolist() == answer(other, 0, 30).tolist()
    store.reset()
    other.reset()
    assert pool.memory() == (0, 0, 0)


@pytest.mark.parametrize("error", [TimeoutError, OSError])
@pytest.mark.parametrize("method", ["create", "allocate", "write", "close"])
def test_a_signal_handlers_oserror_is_not_one_of_the_disk(
    config: KIVConfig, tmp_path: Path, method: Method, error: type[OSError] | type[TimeoutError]
) -> None:
    class Alarmed(Faulty):
        def fault(self) -> None:
            raise error("a signal's handler")

    config = dataclasses.replace(config, ram_bytes=16_000, spill_dir=tmp_path)
    io = Alarmed(method, 1)
    pool = FastPool(config, io)
    store = pool.layer_store()

    def use() -> None:
        take(store, 0, 60)
        answer(store, 0, 60)
        store.reset()

    with pytest.raises(error, match="a signal's handler") as raised:
        use()
    assert type(raised.value) is error
    del raised
    store.reset()
    assert pool.memory() == (0, 0, 0)
    assert not io.open
    use()
    pool.close()
    assert not io.open


@pytest.mark.parametrize(
    "system_call", ["kiv_fast.tiers.file_io.FileIO.create", "kiv_fast.memory.growable_table.mmap.mmap"]
)
def test_a_signal_handlers_oserror_in_other_system_calls(
    config: KIVConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system_call: str
) -> None:
    def alarmed(*arguments: Any, **settings: Any) -> None:
        raise TimeoutError("a signal's handler")

    pool = FastPool(dataclasses.replace(config, ram_bytes=16_000, spill_dir=tmp_path))
    store = pool.layer_store()
    with monkeypatch.context() as patch:
        patch.setattr(system_call, alarmed)
        with pytest.raises(TimeoutError, match="a signal's handler"):
            take(store, 0, 60)
    store.reset()
    take(store, 0, 60)
    assert answer(store, 0, 60).shape == (2, 4, 60, 16)
    pool.close()
