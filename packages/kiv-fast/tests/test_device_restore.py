"""A store on a device takes a snapshot: pages are read at once, into memory that the device reads by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from fast_helpers import draw
from kiv_fast import FastPool
from kiv_reference.errors import KIVCorruptError
from saved_pages import saved

pytest.importorskip("triton")

import simulated_launch
from simulated_launch import step

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kiv_reference import KIVConfig
    from simulated_device import SimulatedDevice

PROMPT, STEPS = 126, 4


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedDevice]:
    """A device that reads host memory by itself."""
    with simulated_launch.device(monkeypatch) as made:
        yield made


@pytest.mark.parametrize("indexed", [True, False])
def test_a_restored_store_answers_as_the_first(config: KIVConfig, device: SimulatedDevice, indexed: bool) -> None:
    data = draw(0, PROMPT + STEPS)
    store = FastPool(config, ops="triton").layer_store()
    step(store, data, 0, PROMPT)
    step(store, data, PROMPT, PROMPT + 1)
    snapshot, pages = saved(store, indexed=indexed)
    twin = FastPool(config, ops="triton").layer_store()
    twin.restore(snapshot)
    read = pages.blocks_read
    assert read >= 2 * 2 * 2 * len(pages)
    for at in range(PROMPT + 1, PROMPT + STEPS):
        assert torch.equal(step(store, data, at, at + 1).cpu(), step(twin, data, at, at + 1).cpu())
    assert pages.blocks_read == read


def test_a_page_that_is_not_what_was_saved_is_an_error_at_once(config: KIVConfig, device: SimulatedDevice) -> None:
    data = draw(2, PROMPT)
    store = FastPool(config, ops="triton").layer_store()
    step(store, data, 0, PROMPT)
    snapshot, pages = saved(store)
    pages.broken.add(2 * len(pages))
    pool = FastPool(config, ops="triton")
    twin = pool.layer_store()
    with pytest.raises(KIVCorruptError):
        twin.restore(snapshot)
    assert sum(pool.memory()) == 0
    pages.broken.clear()
    twin.restore(snapshot)
    assert twin.length == PROMPT


def test_a_snapshot_of_a_device_is_taken_by_the_cpu(config: KIVConfig, device: SimulatedDevice) -> None:
    data = draw(1, PROMPT)
    store = FastPool(config, ops="triton").layer_store()
    step(store, data, 0, PROMPT)
    snapshot, _ = saved(store)
    assert snapshot.key.device.type != "cpu"
    key, value, sampled = snapshot.key.cpu(), snapshot.value.cpu(), snapshot.sampled.cpu()
    twin = FastPool(config).layer_store()
    twin.restore(replace(snapshot, key=key, value=value, sampled=sampled))
    assert twin.length == PROMPT
    assert twin.memory().ram == store.memory().ram
