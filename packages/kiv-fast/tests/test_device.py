"""The code path of a device that is not the CPU, on a simulated one: the same answers, and few waits of the host."""

from dataclasses import replace

import pytest
import torch
from fast_helpers import SCALE, draw
from kiv_fast import FastPool, chapters, cold, transfer
from simulated_device import DEVICE, SimulatedDevice, SimulatedStreams

CHUNKS = [286, *[1] * 5]

PLAIN_STEP = ["finite_sums", "finite_sums", "fetch", "fetch"]
"""Keys and values are finite; queries are; which pages; which tokens."""

CHAPTER_STEP = ["finite_sums", "finite_sums", "fetch", "fetch_both", "fetch"]
"""As before, and first the pages that look best; with those that are, whether others must be looked at."""

EVICTION = ["write", "write", "fetch", "fetch"]
"""Keys, values, and the two summaries of pages that leave the hot window."""


@pytest.fixture
def streams(monkeypatch):
    """Of all stores on the simulated device."""
    made = []

    def transfer_to(device):
        if device != DEVICE:
            return transfer.NullTransfer()
        made.append(SimulatedStreams(device))
        return transfer.StagedTransfer(made[-1])

    monkeypatch.setattr(cold, "transfer_to", transfer_to)
    return made


@pytest.fixture
def small_chapters(monkeypatch):
    monkeypatch.setattr(chapters, "LEAST_CHAPTER_PAGES", 8)
    monkeypatch.setattr(chapters, "MOST_CHAPTER_PAGES", 32)


def feed(store, data, device, modifiers, valid=None):
    """Append and attend chunk by chunk; outputs, candidates and selections, on the CPU."""
    outputs, chosen, start = [], [], 0
    for n in CHUNKS:
        key, value, query = (part[:, :, start : start + n].to(device) for part in data)
        mask = None if valid is None else valid[:, start : start + n].to(device)
        store.append(key, value, mask)
        outputs.append(store.attend(query, scale=SCALE, **modifiers).to("cpu"))
        for block in store.report.blocks:
            chosen += [block.candidate_pages.to("cpu"), block.selected_positions.to("cpu")]
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


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_device_answers_as_the_cpu_does(config, case, padded, streams, small_chapters, tmp_path):
    fields, modifiers = CASES[case]
    config = replace(config, spill_dir=tmp_path, **fields)
    data = draw(0, sum(CHUNKS), batch=2)
    valid = None
    if padded:
        valid = torch.ones(2, sum(CHUNKS), dtype=torch.bool)
        valid[1, :53] = False
    expected, picks = feed(FastPool(config).layer_store(), data, "cpu", modifiers, valid)
    with SimulatedDevice():
        store = FastPool(config).layer_store()
        output, chosen = feed(store, data, DEVICE, modifiers, valid)
        store.repeat_interleave(2)
        store.crop(100)
        key, value, query = (part[:, :, :1].repeat_interleave(2, dim=0).to(DEVICE) for part in data)
        store.append(key, value)
        assert bool(torch.isfinite(store.fork().attend(query, scale=SCALE)).all())
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(chosen, picks, strict=True))
    assert streams
    for each in streams:
        each.land(10**9)


def waits_of_steps(config):
    """For each decode step, the functions that waited for the device."""
    steps, start, chunks = [], 0, [286, *[1] * 9]
    data = draw(1, sum(chunks))
    with SimulatedDevice() as device:
        store = FastPool(config).layer_store()
        for n in chunks:
            key, value, query = (part[:, :, start : start + n].to(DEVICE) for part in data)
            device.waits.clear()
            store.append(key, value)
            store.attend(query, scale=SCALE)
            steps.append([wait.split(":")[1] for wait in device.waits])
            start += n
    return steps[1:]


def count_steps(steps, step):
    """Every step waits as `step`; those after which a page leaves, for that as well."""
    evicting = [waits for waits in steps if waits == step + EVICTION]
    assert len(evicting) in (len(steps) // 4, len(steps) // 4 + 1)
    assert [waits for waits in steps if waits not in evicting] == [step] * (len(steps) - len(evicting))


def test_the_waits_of_a_decode_step(config, streams):
    count_steps(waits_of_steps(config), PLAIN_STEP)


def test_the_waits_of_a_decode_step_over_chapters(config, streams, small_chapters):
    count_steps(waits_of_steps(config), CHAPTER_STEP)


def test_a_wait_that_is_not_listed_shows():
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
            torch.ones(3, device=DEVICE) + torch.ones(3)


def test_a_slot_that_is_used_again_too_early_shows(config, streams, monkeypatch):
    config = replace(config, candidate_pages=30, retrieve_tokens=100)
    waits_of_steps(config)

    class Now:
        def wait(self):
            pass

    monkeypatch.setattr(SimulatedStreams, "record", lambda self: Now())
    waits_of_steps(config)
    with pytest.raises(AssertionError, match="filled again"):
        streams[-1].land(10**9)
