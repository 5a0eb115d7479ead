"""A device that sees host memory at another address than the host does, and a small quota, as on Windows and WSL2."""

from __future__ import annotations

import gc
import sys
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from fast_helpers import SCALE, assert_close, draw
from kiv_fast import FastPool, shared
from kiv_fast.device.gather import Gather, works
from kiv_fast.device.transfer import Transfer
from kiv_fast.memory import growable_table, pinning
from kiv_fast.memory.pinning import SlabPinning
from simulated_device import DEVICE, SimulatedDevice
from simulated_streams import SimulatedStreams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kiv_fast.store import FastStore
    from kiv_reference import KIVConfig

if sys.platform != "linux":
    pytest.skip("maps memory twice by calls of Linux", allow_module_level=True)

from far_memory import FarRuntime

CHUNKS = [600, *[1] * 6]


@pytest.fixture
def small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinning, "LEAST_BYTES", 1 << 13)
    monkeypatch.setattr(pinning, "MOST_BYTES", 1 << 15)
    monkeypatch.setattr(growable_table, "RESERVE_BYTES", 1 << 24)


def pool_on(runtime: FarRuntime, config: KIVConfig, monkeypatch: pytest.MonkeyPatch) -> FastPool:
    """Make a pool whose stores on the simulated device lie in memory that it sees elsewhere."""
    pinned = SlabPinning(runtime, 1 << 40)
    monkeypatch.setattr(growable_table, "reserve", runtime.reserve)
    monkeypatch.setattr(shared, "pinning_for", lambda device: pinned)
    monkeypatch.setattr(
        shared, "gather_for", lambda device, direct: Gather(Transfer(SimulatedStreams(device)), runtime.on_device)
    )
    return FastPool(config)


def play(store: FastStore, data: Sequence[torch.Tensor], device: Any) -> torch.Tensor:
    """Feed a store, crop it, feed it again, and go on in a fork; all outputs."""
    outputs, at, moved = [], 0, [part.to(device) for part in data]

    def feed(store: FastStore, chunks: Sequence[int]) -> None:
        nonlocal at
        for n in chunks:
            key, value, query = (part[:, :, at : at + n] for part in moved)
            store.append(key, value)
            outputs.append(store.attend(query, scale=SCALE).to("cpu"))
            at += n

    feed(store, CHUNKS)
    store.crop(300)
    at = 300
    feed(store, [200, 1, 1])
    feed(store.fork(), [*[1] * 6])
    feed(store, [1])
    return torch.cat(outputs, dim=2)


@pytest.mark.parametrize("limit", [1 << 40, 300_000, 60_000, 9_000, 0])
@pytest.mark.parametrize("apart", [False, True], ids=["side by side", "apart"])
def test_a_device_reads_memory_where_it_sees_it(
    config: KIVConfig, small_slabs: None, monkeypatch: pytest.MonkeyPatch, apart: bool, limit: int
) -> None:
    """Or, from a quota on that is reached in the middle of a table, the host reads it."""
    data = draw(3, sum(CHUNKS) + 1, dtype=torch.float64)
    expected = play(FastPool(config).layer_store(), data, "cpu")
    runtime = FarRuntime(apart, limit)
    with SimulatedDevice() as device, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pool = pool_on(runtime, config, monkeypatch)
        output = play(pool.layer_store(), data, DEVICE)
    assert_close(output, expected)
    refusals = [str(warning.message) for warning in caught if "not pinned" in str(warning.message)]
    assert len(refusals) == runtime.refused == (limit < 1 << 40)
    assert all("out of lockable memory" in refusal for refusal in refusals)
    assert (runtime.mapped > 0) == (limit > 100_000)
    staged = sum(wait.split(":")[1] == "fetch" for wait in device.waits)
    assert (staged > 25) == (limit < 1 << 40)
    del device
    pool.close()
    gc.collect()
    assert not list(runtime.forget())


def test_a_table_that_is_seen_apart_is_one_slab(small_slabs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registered anew when it has doubled, not with each record."""
    runtime = FarRuntime(apart=True)
    monkeypatch.setattr(growable_table, "reserve", runtime.reserve)
    pinned = SlabPinning(runtime, 1 << 40)
    addresses = []
    with SimulatedDevice():
        for _ in range(2):
            table = growable_table.Table((256,), torch.float32, torch.device("cpu"), pinned)
            gather = Gather(Transfer(SimulatedStreams(DEVICE)), runtime.on_device)
            for record in range(100):
                table.put([record], torch.full((1, 256), float(record)))
                every = gather.rows(table, torch.arange(record + 1).to(DEVICE)).to("cpu")
                assert torch.equal(every[:, 0], torch.arange(record + 1.0))
                addresses.append(table.seen)
            assert [size for _, size in runtime.slabs.values()] == [1 << 17]
            assert len(set(addresses)) == 5  # of 8 to 128 KiB
            addresses.clear()


def test_a_trial_sees_a_wrong_address(small_slabs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Host(FarRuntime):
        def device_address(self, address: int) -> int:
            return address

    for kind, right in ((FarRuntime, True), (Host, False)):
        runtime = kind(apart=False)
        monkeypatch.setattr(growable_table, "reserve", runtime.reserve)
        with SimulatedDevice():
            gather = Gather(Transfer(SimulatedStreams(DEVICE)), runtime.on_device)
            if right:
                assert works(gather, DEVICE, SlabPinning(runtime, 1 << 40))
            else:
                with pytest.raises(AssertionError, match="does not know"):
                    works(gather, DEVICE, SlabPinning(runtime, 1 << 40))


def test_memory_that_is_seen_nobody_knows_where(
    config: KIVConfig, small_slabs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is registered, and the device is not asked to read it."""

    class Unasked(FarRuntime):
        def device_address(self, address: int) -> int:
            raise RuntimeError("the runtime was not found")

    data = draw(3, sum(CHUNKS) + 1, dtype=torch.float64)
    expected = play(FastPool(config).layer_store(), data, "cpu")
    runtime = Unasked(apart=False)
    with SimulatedDevice(), pytest.warns(RuntimeWarning, match="runtime was not found"):
        assert_close(play(pool_on(runtime, config, monkeypatch).layer_store(), data, DEVICE), expected)
    assert runtime.mapped == 0
    assert not list(runtime.forget())


@pytest.mark.parametrize("copied", [False, True])
def test_a_trial_that_no_memory_is_registered_for(
    config: KIVConfig, small_slabs: None, monkeypatch: pytest.MonkeyPatch, copied: bool
) -> None:
    """It is refused, or tables are copied as they grow, as on Windows."""
    runtime = FarRuntime(apart=False, limit=1 << 40 if copied else 0)
    monkeypatch.setattr(growable_table, "reserve", (lambda *_: None) if copied else runtime.reserve)
    with SimulatedDevice(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gather = Gather(Transfer(SimulatedStreams(DEVICE)), runtime.on_device)
        with pytest.raises(RuntimeError, match="not registered"):
            works(gather, DEVICE, SlabPinning(runtime, 1 << 40))
