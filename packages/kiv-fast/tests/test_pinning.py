"""Registering host memory, against a runtime that keeps book of what was registered."""

from __future__ import annotations

import gc
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from fast_helpers import draw, feed, state_of
from kiv_fast import FastPool, shared
from kiv_fast.memory import growable_table, pinning
from kiv_fast.memory.growable_table import Table
from kiv_fast.memory.pinning import CudaRuntime, Region, SlabPinning, pinning_for

if TYPE_CHECKING:
    from pathlib import Path

    from kiv_fast.store import FastStore
    from kiv_reference import KIVConfig

CHUNKS = [3000, *[1] * 20]


class BookKeeper(CudaRuntime):
    """Refuse what a runtime would refuse, and more from the n-th registration on."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.slabs: dict[int, int] = {}
        self.calls, self.fail_at = 0, fail_at
        self.most = 0  # bytes at once

    def register(self, address: int, nbytes: int) -> None:
        self.calls += 1
        if self.fail_at is not None and self.calls >= self.fail_at:
            raise RuntimeError("out of lockable memory")
        assert nbytes.bit_count() == 1
        assert nbytes <= pinning.MOST_BYTES
        assert all(address + nbytes <= a or a + n <= address for a, n in self.slabs.items()), "slabs overlap"
        self.slabs[address] = nbytes
        self.most = max(self.most, sum(self.slabs.values()))

    def unregister(self, address: int) -> None:
        del self.slabs[address]

    def device_address(self, address: int) -> int:
        assert address in self.slabs
        return address

    def covers(self, first: int, stop: int) -> bool:
        """Say whether all of an interval is registered."""
        while first < stop:
            within = [a + n for a, n in self.slabs.items() if a <= first < a + n]
            if not within:
                return False
            first = within[0]
        return True


@pytest.fixture
def small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinning, "LEAST_BYTES", 1 << 13)
    monkeypatch.setattr(pinning, "MOST_BYTES", 1 << 15)


def pinned_pool(
    config: KIVConfig, runtime: BookKeeper, monkeypatch: pytest.MonkeyPatch, limit: int = 1 << 40
) -> FastPool:
    monkeypatch.setattr(shared, "pinning_for", lambda device: SlabPinning(runtime, limit))
    return FastPool(config)


def tables(store: FastStore) -> list[Table]:
    cold = state_of(store).cold
    return [cold.arena._key, cold.arena._value]


def test_a_slab_whose_address_on_the_device_is_not_told_is_given_back() -> None:
    """Also where it covers all that is wanted, so that no other would be registered behind it."""

    class Silent(BookKeeper):
        def device_address(self, address: int) -> int:
            raise RuntimeError("no address is told")

    runtime, region = Silent(), Region(0, 8 * pinning.LEAST_BYTES)
    with pytest.warns(RuntimeWarning, match="no address is told"):
        SlabPinning(runtime, 1 << 40).cover(region, pinning.LEAST_BYTES)
    assert runtime.calls == 1
    assert (region.pinned, runtime.slabs) == (0, {})


def test_slabs_cover_what_is_used_and_go_with_it(
    config: KIVConfig, small_slabs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = draw(0, sum(CHUNKS))
    expected = feed(FastPool(config).layer_store(), data, CHUNKS)
    runtime = BookKeeper()
    several = pinned_pool(config, runtime, monkeypatch)
    store = several.layer_store()
    assert torch.equal(feed(store, data, CHUNKS), expected)
    pages = state_of(store).pages

    def look() -> None:  # it lets go of the tables
        for table in tables(store):
            first = table.tensor.data_ptr()
            assert runtime.covers(first, first + pages * table.record_bytes)
            assert not runtime.covers(first, first + 2 * pages * table.record_bytes + 2 * pinning.MOST_BYTES)

    look()
    assert len(set(runtime.slabs.values())) > 1
    several.close()
    gc.collect()
    assert runtime.slabs == {}


def test_a_record_is_registered_once(small_slabs: None) -> None:
    runtime = BookKeeper()
    table = Table((1024,), torch.float32, torch.device("cpu"), SlabPinning(runtime, 1 << 40))
    for record in range(30):
        table.ensure(record + 1)
    calls = runtime.calls
    table.ensure(1)
    table.ensure(30)
    assert runtime.calls == calls == len(runtime.slabs)


def test_a_table_that_moves_is_not_pinned(small_slabs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growable_table, "RESERVE_BYTES", 1 << 15)
    runtime = BookKeeper()
    table = Table((512,), torch.float32, torch.device("cpu"), SlabPinning(runtime, 1 << 40))
    table.ensure(growable_table.FIRST_RECORDS)
    assert runtime.slabs
    table.ensure(growable_table.FIRST_RECORDS + 1)
    table.ensure(growable_table.FIRST_RECORDS + 2)
    assert not runtime.slabs


@pytest.mark.parametrize("fail_at", [1, 2, 5, 20])
def test_a_failure_warns_once_and_loses_nothing(
    config: KIVConfig, small_slabs: None, monkeypatch: pytest.MonkeyPatch, fail_at: int
) -> None:
    data = draw(1, sum(CHUNKS))
    expected = feed(FastPool(config).layer_store(), data, CHUNKS)
    runtime = BookKeeper(fail_at)
    several = pinned_pool(config, runtime, monkeypatch)
    stores = [several.layer_store(), several.layer_store()]
    with pytest.warns(RuntimeWarning, match="not pinned from here on .out of lockable memory") as caught:
        outputs = [feed(store, data, CHUNKS) for store in stores]
    assert all(torch.equal(output, expected) for output in outputs)
    # Garbage of other tests may warn meanwhile: only these count.
    assert sum("not pinned" in str(warning.message) for warning in caught) == 1
    assert runtime.calls == fail_at
    every = tables(stores[0]) + tables(stores[1])
    while every:  # pinned whole, or not at all: a device reads no part
        table = every.pop()
        start = table.tensor.data_ptr()
        assert table.pinned or not any(start <= slab < start + table.tensor.nbytes for slab in runtime.slabs)
        del table
    del stores
    several.close()
    gc.collect()
    assert runtime.slabs == {}


def test_a_table_is_pinned_whole_or_not_at_all(small_slabs: None) -> None:
    """Also one that was whole when another was refused, and grows."""
    runtime = BookKeeper(fail_at=3)
    pinned = SlabPinning(runtime, 1 << 40)
    first, second = (Table((1024,), torch.float32, torch.device("cpu"), pinned) for _ in range(2))
    first.ensure(2)
    with pytest.warns(RuntimeWarning, match="not pinned"):
        second.ensure(8)
    assert list(runtime.slabs) == [first.tensor.data_ptr()]
    assert (first.pinned, second.pinned) == (True, False)
    first.ensure(3)
    assert not runtime.slabs
    assert not first.pinned


def test_all_slabs_together_are_bounded(config: KIVConfig, small_slabs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = BookKeeper()
    several = pinned_pool(config, runtime, monkeypatch, limit=100_000)
    store = several.layer_store()
    with pytest.warns(RuntimeWarning, match="100000 are the most"):
        feed(store, draw(1, sum(CHUNKS)), CHUNKS)
    assert 0 < runtime.most <= 100_000


def test_pinned_memory_is_not_given_back(small_slabs: None) -> None:
    """The device would go on to see the old memory, and the host the new."""
    for kept in (True, False):
        means = SlabPinning(BookKeeper(), 1 << 40) if kept else None
        table = Table((1024,), torch.float32, torch.device("cpu"), means)
        table.ensure(2)
        table.tensor[:2] = 1
        table.forget([1])
        assert bool((table.tensor[1] == 1).all()) == kept
        assert bool((table.tensor[0] == 1).all())


def test_only_what_a_device_reads_is_pinned(
    config: KIVConfig, small_slabs: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Pages that may go to disk are read by the host."""
    assert pinning_for(torch.device("cpu")) is None
    runtime = BookKeeper()
    several = pinned_pool(replace(config, ram_bytes=1 << 20, spill_dir=tmp_path), runtime, monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        feed(several.layer_store(), draw(1, 400), [400])
    assert not runtime.slabs
