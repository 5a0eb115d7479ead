"""What query blocks and sequences that a device answers together cost: launches, waits, and memory."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from blocks_together import ALONE, CHUNKS, CONFIG, PROMPT, Geometry, check_reports, draw, note_shares, play
from fast_helpers import SCALE, state_of
from kiv_fast import FastPool, Tuning
from kiv_fast.memory.scratch import step_bytes, temporary_bytes, tile_bytes
from kiv_fast.state import State
from kiv_reference.errors import KIVBudgetError
from simulated_device import DEVICE, SimulatedDevice
from simulated_streams import install

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kiv_fast.store import FastStore


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedDevice]:
    install(monkeypatch)
    with SimulatedDevice() as made:
        yield made


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    return note_shares(monkeypatch)


def calls(
    device: SimulatedDevice, geometry: Geometry, queries: int, tuning: Tuning | None = None, channels: int = 16
) -> tuple[int, int]:
    """Count launches and waits of a call whose blocks of 32 queries see the same pages, but for pages that leave."""
    config = replace(CONFIG, hot_tokens=64, page_tokens=512, query_block_tokens=32, exact_suffix_tokens=0)
    config = replace(config, candidate_tokens=256, retrieve_tokens=64, index_channels=channels)
    start = config.sink_tokens + config.hot_tokens + 2 * config.page_tokens
    data = [part.to(DEVICE) for part in draw(geometry, start + queries)]
    store = FastPool(config, tuning=tuning).layer_store()
    store.append(*(part[:, :, :start] for part in data[:2]))
    store.append(*(part[:, :, start:] for part in data[:2]))
    device.operations.clear()
    device.waits.clear()
    store.attend(data[2][:, :, start:], scale=SCALE)
    found = len(device.operations), len(device.waits)
    blocks = store.report.blocks
    assert len(blocks) == queries // 32
    assert {(block.mode, block.cold_pages) for block in blocks} == {("retrieve", 2)}
    assert any(bool(block.widened.any()) for block in blocks) == (channels < 16)
    return found


@pytest.fixture
def apart(device: SimulatedDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """Count no launch and no wait of pages that leave the hot window, each for itself."""
    evict = State.evict

    def uncounted(state: State, pages: int) -> None:
        before = len(device.operations), len(device.waits)
        evict(state, pages)
        del device.operations[before[0] :], device.waits[before[1] :]

    monkeypatch.setattr(State, "evict", uncounted)


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("channels", [2, 16], ids=["widened", "not widened"])
def test_many_blocks_and_sequences_are_one_set_of_launches(device: SimulatedDevice, channels: int) -> None:
    one, waits = calls(device, Geometry(), 32, channels=channels)
    many, same = calls(device, Geometry(), 512, channels=channels)
    assert many <= 1.2 * one
    assert same <= waits + 4  # of sampled queries
    two, three = (calls(device, Geometry(batch=batch), 512, channels=channels) for batch in (2, 3))
    assert three == two
    assert two[0] <= 1.5 * one
    assert two[1] == same


@pytest.mark.usefixtures("apart")
def test_each_block_alone_is_a_set_of_launches(device: SimulatedDevice) -> None:
    """What the others are counted against."""
    one, _ = calls(device, Geometry(), 32, ALONE)
    many, _ = calls(device, Geometry(), 512, ALONE)
    assert many > 14 * one


def test_blocks_with_nothing_to_choose_are_one_set_of_launches(device: SimulatedDevice) -> None:
    """But for what notes each of them."""
    config, found = replace(CONFIG, hot_tokens=4096, query_block_tokens=32, exact_suffix_tokens=0), list[int]()
    for queries in (32, 32 * 33):
        data = [part.to(DEVICE) for part in draw(Geometry(), queries)]
        store = FastPool(config).layer_store()
        store.append(*data[:2])
        device.operations.clear()
        store.attend(data[2], scale=SCALE)
        found.append(len(device.operations))
        assert {block.mode for block in store.report.blocks} == {"exact"}
        assert len(store.report.blocks) == queries // 32
    assert found[1] <= found[0] + 2 * 32


@pytest.mark.parametrize("nbytes", [1, 400_000, 900_000, 2_000_000])
@pytest.mark.parametrize(
    ("channels", "bound"), [(2, False), (16, False), (2, True)], ids=["widened", "not widened", "with a bound"]
)
def test_what_is_answered_together_takes_bounded_memory(
    device: SimulatedDevice, groups: list[tuple[int, int]], nbytes: int, channels: int, bound: bool
) -> None:
    config = replace(CONFIG, index_channels=channels, exact_suffix_tokens=0)
    data = [part.to(DEVICE) for part in draw(Geometry(batch=2), PROMPT + 96)]
    store = FastPool(config, tuning=Tuning(together_bytes=nbytes)).layer_store()
    store.append(*(part[:, :, :PROMPT] for part in data[:2]))
    store.append(*(part[:, :, PROMPT:] for part in data[:2]))
    held = device.peak_bytes = device.nbytes
    output = store.attend(data[2][:, :, PROMPT:], scale=SCALE, bound=bound)
    assert output.shape[2] == 96
    few = {1: (1, 1), 400_000: (4, 1), 900_000: (8, 1), 2_000_000: (8, 2)}[nbytes]
    assert max(groups) < few if bound and few > (1, 1) else max(groups) == few
    if max(groups) > (1, 1):  # else it is as much as a block takes
        assert nbytes / 5 < device.peak_bytes - held <= nbytes


@pytest.mark.parametrize("channels", [2, 16], ids=["widened", "not widened"])
@pytest.mark.parametrize("tokens", [1_000, 20_000])
def test_what_a_step_computes_and_forgets_is_counted(device: SimulatedDevice, tokens: int, channels: int) -> None:
    config, geometry = replace(CONFIG, index_channels=channels, exact_suffix_tokens=0), Geometry(groups=4)
    data = [part.to(DEVICE) for part in draw(geometry, tokens + 2)]
    store, held = FastPool(config).layer_store(), 0
    for chunk in (slice(0, tokens), slice(tokens, tokens + 1), slice(tokens + 1, None)):
        store.append(*(part[:, :, chunk] for part in data[:2]))
        held = device.peak_bytes = device.nbytes
        if chunk.start:  # the first of these makes the pages of the prompt cold
            store.attend(data[2][:, :, chunk], scale=SCALE)
    state = state_of(store)
    counted = temporary_bytes(state.shape, config, Tuning(), geometry.groups, state.pages)
    assert counted / 4 < device.peak_bytes - held <= counted


def test_budgets_change_neither_a_bit_nor_how_many_are_answered_together(
    groups: list[tuple[int, int]], tmp_path: Path
) -> None:
    data, seen = draw(Geometry(batch=2), PROMPT + sum(CHUNKS)), list[Any]()
    for more in ({}, {"device_bytes": 1 << 22}, {"ram_bytes": 60_000, "spill_dir": tmp_path}):
        groups.clear()
        output, blocks = play(FastPool(replace(CONFIG, **more)).layer_store(), data, DEVICE)
        seen.append((output, list(groups), blocks))
    for output, shares, blocks in seen[1:]:
        assert torch.equal(output, seen[0][0])
        assert shares == seen[0][1]
        check_reports(blocks, seen[0][2], 0)


def test_what_is_gathered_together_is_booked(tmp_path: Path) -> None:
    for geometry in (Geometry(), Geometry(batch=3)):
        config = replace(CONFIG, ram_bytes=400_000, spill_dir=tmp_path)
        for tuning in (None, Tuning(chunk_bytes=20_000)):
            pool = FastPool(config, tuning=tuning)
            store: FastStore = pool.layer_store()
            play(store, draw(geometry, PROMPT + sum(CHUNKS), torch.bfloat16), DEVICE)
            used = [b.nbytes for (name, *_), b in pool.scratch._buffers.items() if name in ("keys", "values")]
            assert len(used) == 2
            state = state_of(store)
            booked = step_bytes(state.shape, config, pool.tuning)
            assert sum(used) == booked if tuning is None else booked / 2 < sum(used) <= booked
            tiles = tile_bytes(state.shape, config, pool.tuning, state.pages)
            assert booked + tiles == pool.scratch.nbytes <= pool.memory().device


def test_what_does_not_fit_is_refused_before_anything_changes() -> None:
    data = draw(Geometry(), PROMPT + 96)
    roomy = FastPool(CONFIG)
    play(roomy.layer_store(), data, DEVICE, [96])
    limit = roomy.memory().device - roomy.scratch.nbytes // 2
    pool = FastPool(replace(CONFIG, device_bytes=limit))
    store = pool.layer_store()
    with pytest.raises(KIVBudgetError):
        play(store, data, DEVICE, [96])
    assert pool.memory() == (0, 0, 0) or store.length == PROMPT


def test_scores_are_not_kept_after_a_call(device: SimulatedDevice) -> None:
    data = [part.to(DEVICE) for part in draw(Geometry(), PROMPT + 96)]
    left = list[int]()
    for tuning in (ALONE, None):
        store = FastPool(CONFIG, tuning=tuning).layer_store()
        store.append(*(part[:, :, :PROMPT] for part in data[:2]))
        store.append(*(part[:, :, PROMPT:] for part in data[:2]))
        held = device.nbytes
        output = store.attend(data[2][:, :, PROMPT:], scale=SCALE)
        left.append(device.nbytes - held - output.nbytes)
    assert left[1] < left[0] - 4 * 93 * CONFIG.candidate_tokens * 4
