"""The code path of a device that is not the CPU, on a simulated one: the same answers, and few waits of the host."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from fast_helpers import SCALE, assert_close, draw
from kiv_fast import FastPool, Tuning
from kiv_fast.device.gather import Gather, works
from kiv_fast.device.transfer import Transfer
from kiv_fast.memory.pinning import SlabPinning
from kiv_reference.errors import KIVNonFiniteError
from simulated_device import DEVICE, OnDevice, SimulatedDevice
from simulated_streams import Runtime, SimulatedStreams, install, on_device

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from kiv_fast.store import FastStore
    from kiv_reference import KIVConfig

CHUNKS = [286, *[1] * 5]

STEP = ["finite", "finite", "fetch"]
"""Are keys and values finite, is the query, and do the keys of the candidates tell that the codes rank badly?"""

STAGED_STEP = ["finite", "finite", "fetch", "fetch", "fetch"]
"""Where the device cannot read host memory, also for what the host must gather first: keys and values."""

EVICTION = ["put", "put", "fetch", "_code"]
"""Keys, values, and the errors of pages that leave the hot window; are their mean values finite?"""


@pytest.fixture(params=[True, False], ids=["mapped", "staged"])
def mapped(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch, mapped: bool) -> list[SimulatedStreams]:
    return install(monkeypatch, mapped)


SMALL = Tuning(chunk_bytes=4096)


def feed(
    store: FastStore,
    data: Sequence[torch.Tensor],
    device: torch.device | str,
    modifiers: Any,
    valid: torch.Tensor | None = None,
    chunks: Sequence[int] = CHUNKS,
) -> tuple[torch.Tensor, list[Any]]:
    """Append and attend chunk by chunk; outputs, candidates and selections, on the CPU."""
    outputs, chosen, start = [], [], 0
    for n in chunks:
        key, value, query = (part[:, :, start : start + n].to(device) for part in data)
        mask = None if valid is None else valid[:, start : start + n].to(device)
        store.append(key, value, mask)
        outputs.append(store.attend(query, scale=SCALE, **modifiers).to("cpu"))
        for block in store.report.blocks:
            chosen += [block.candidate_positions.to("cpu"), block.selected_positions.to("cpu")]
        start += n
    return torch.cat(outputs, dim=2), chosen


CASES = {
    "plain": ({}, {}),
    "retrieve": ({"prefill": "retrieve", "query_block_tokens": 32, "exact_suffix_tokens": 4}, {}),
    "window": ({"prefill": "window", "query_block_tokens": 16, "exact_suffix_tokens": 4}, {"bound": True}),
    "max": ({"group": "max"}, {"bound": True}),
    "no tail": ({"tail": "none"}, {"softcap": 3.0}),
    "bounded": ({"max_missed_mass": 0.2}, {}),
    "exact": ({"retrieve_tokens": None}, {}),
    "disk": ({"ram_bytes": 60_000}, {}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("case", "padded", "mapped"),
    [*[(case, padded, True) for case in CASES for padded in (False, True)], ("plain", False, False)],
)
def test_a_device_answers_as_the_cpu_does(
    config: KIVConfig, case: str, padded: bool, dtype: torch.dtype, streams: list[SimulatedStreams], tmp_path: Path
) -> None:
    fields, modifiers = CASES[case]
    config = replace(config, spill_dir=tmp_path, **fields)
    if config.ram_bytes is not None:
        config = replace(config, ram_bytes=config.ram_bytes * dtype.itemsize // torch.float32.itemsize)
    data = draw(0, sum(CHUNKS), batch=2, dtype=dtype)
    valid = None
    if padded:
        valid = torch.ones(2, sum(CHUNKS), dtype=torch.bool)
        valid[1, :53] = False
    expected, picks = feed(FastPool(config, tuning=SMALL).layer_store(), data, "cpu", modifiers, valid)
    with SimulatedDevice():
        store = FastPool(config, tuning=SMALL).layer_store()
        output, chosen = feed(store, data, DEVICE, modifiers, valid)
        store.repeat_interleave(2)
        store.crop(100)
        key, value, query = (part[:, :, :1].repeat_interleave(2, dim=0).to(DEVICE) for part in data)
        store.append(key, value)
        assert bool(torch.isfinite(store.fork().attend(query, scale=SCALE)).all())
    assert_close(output, expected)
    assert all(torch.equal(a, b) for a, b in zip(chosen, picks, strict=True))
    assert streams
    for each in streams:
        each.land(10**9)


def waits_of_steps(config: KIVConfig, tuning: Tuning | None = None) -> list[list[str]]:
    """Return for each decode step the functions that waited for the device."""
    steps, start, chunks = [], 0, [286, *[1] * 9]
    data = draw(1, sum(chunks))
    with SimulatedDevice() as device:
        store = FastPool(config, tuning=tuning).layer_store()
        for n in chunks:
            key, value, query = (part[:, :, start : start + n].to(DEVICE) for part in data)
            device.waits.clear()
            store.append(key, value)
            store.attend(query, scale=SCALE)
            steps.append([wait.split(":")[1] for wait in device.waits])
            start += n
    return steps[1:]


def count_steps(steps: list[list[str]], step: list[str]) -> None:
    """Check that every step waits as `step`, and those after which a page leaves for that as well."""
    evicting = [waits for waits in steps if waits == step + EVICTION]
    assert len(evicting) in (len(steps) // 4, len(steps) // 4 + 1)
    assert [waits for waits in steps if waits not in evicting] == [step] * (len(steps) - len(evicting))


def test_the_waits_of_a_decode_step(config: KIVConfig, streams: list[SimulatedStreams], mapped: bool) -> None:
    """Whether or not candidates are doubled; where the host gathers, it waits for more of them too."""
    coded = replace(config, index_channels=config.index_channels if mapped else 10**6)
    count_steps(waits_of_steps(coded), STEP if mapped else STAGED_STEP)


@pytest.mark.parametrize("mapped", [False])
def test_the_host_gathers_once_more_where_candidates_are_doubled(
    config: KIVConfig, streams: list[SimulatedStreams], mapped: bool
) -> None:
    steps = [step for step in waits_of_steps(config) if step[-1] == "fetch"]
    assert {len(step) for step in steps} == {len(STAGED_STEP), len(STAGED_STEP) + 1}


@pytest.mark.parametrize("mapped", [True])
def test_pages_under_a_ram_budget_are_read_by_the_host(
    config: KIVConfig, streams: list[SimulatedStreams], tmp_path: Path
) -> None:
    steps = waits_of_steps(replace(config, ram_bytes=60_000, spill_dir=tmp_path))
    assert STAGED_STEP in steps


def step(store: FastStore, data: Sequence[torch.Tensor], at: int, device: torch.device | str) -> torch.Tensor:
    """Append and attend the token at position `at`."""
    key, value, query = (part[:, :, at : at + 1].to(device) for part in data)
    store.append(key, value)
    return store.attend(query, scale=SCALE).to("cpu")


def spoil(data: Sequence[torch.Tensor], part: Any, at: Any, number: float) -> list[torch.Tensor]:
    """Return the same with one number of a key, value or query (0, 1, 2) replaced."""
    spoilt = [tensor.clone() for tensor in data]
    spoilt[part][0, 0, at, 3] = number
    return spoilt


def test_an_infinite_value_is_seen_by_whom_it_concerns(config: KIVConfig, streams: list[SimulatedStreams]) -> None:
    data = spoil(draw(4, 300, dtype=torch.float64), 1, 293, torch.inf)
    chunks = [286, *[1] * 14]
    expected, _ = feed(FastPool(config).layer_store(), data, "cpu", {}, chunks=chunks)
    with SimulatedDevice():
        output, _ = feed(FastPool(config).layer_store(), data, DEVICE, {}, chunks=chunks)
    assert torch.isinf(expected).any()
    assert_close(output, expected, equal_nan=True)


@pytest.mark.parametrize("part", [0, 2], ids=["key", "query"])
def test_a_token_that_is_refused_leaves_no_trace(config: KIVConfig, streams: list[SimulatedStreams], part: int) -> None:
    data = draw(3, 200, dtype=torch.float64)
    bad = spoil(data, part, 190, torch.nan)
    whole = FastPool(config).layer_store()
    feed(whole, [tensor[:, :, :190] for tensor in data], "cpu", {}, chunks=[180, *[1] * 10])
    with SimulatedDevice():
        store = FastPool(config).layer_store()
        feed(store, [tensor[:, :, :190] for tensor in data], DEVICE, {}, chunks=[180, *[1] * 10])
        with pytest.raises(KIVNonFiniteError):
            step(store, bad, 190, DEVICE)
        assert store.length == 190 + (part == 2)
        if part == 2:  # the token came in, only the query was not
            output = store.attend(data[2][:, :, 190:191].to(DEVICE), scale=SCALE).to("cpu")
        else:
            output = step(store, data, 190, DEVICE)
        assert_close(output, step(whole, data, 190, "cpu"))


def test_a_trial_tells_whether_the_device_reads_host_memory() -> None:
    runtime = SlabPinning(Runtime(DEVICE), 1 << 40)
    with SimulatedDevice():
        transfer = Transfer(SimulatedStreams(DEVICE))
        assert works(Gather(transfer, on_device), DEVICE, runtime)
        assert not works(Gather(transfer, lambda tensor, _: OnDevice(tensor[:8].clone())), DEVICE, runtime)


def test_a_wait_that_is_not_listed_shows() -> None:
    with SimulatedDevice() as device:
        assert int(torch.ones(3, device=DEVICE).sum()) == 3
        torch.ones(3, device=DEVICE).nonzero()
        torch.ones(3, device=DEVICE).tolist()
        torch.ones(3).copy_(torch.ones(3, device=DEVICE))
        assert len(device.waits) == 4
        torch.ones(3).to(DEVICE, non_blocking=True)
        torch.ones(3, device=DEVICE).copy_(torch.ones(3, device=DEVICE))
        assert len(device.waits) == 4
        torch.ones(3).to(DEVICE)
        torch.ones(3, device=DEVICE).copy_(torch.ones(3))
        assert len(device.waits) == 6
        with pytest.raises(AssertionError, match="mixes devices"):
            torch.add(torch.ones(3, device=DEVICE), torch.ones(3))


@pytest.mark.parametrize("mapped", [False])
def test_a_slot_that_is_used_again_too_early_shows(
    config: KIVConfig, streams: list[SimulatedStreams], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, candidate_tokens=120, retrieve_tokens=100)
    waits_of_steps(config)
    monkeypatch.setattr(SimulatedStreams, "record", lambda self: lambda: None)
    waits_of_steps(config)
    with pytest.raises(AssertionError, match="filled again"):
        streams[-1].land(10**9)
