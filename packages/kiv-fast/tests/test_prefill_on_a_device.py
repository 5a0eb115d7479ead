"""Exact prefill on the simulated device: by its fused attention, in bounded memory, without waiting for tiles."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from fast_helpers import state_of
from kiv_fast import FastPool, Tuning
from kiv_fast.attention import choice, exact
from kiv_reference import KIVConfig
from kiv_reference.errors import KIVBudgetError
from simulated_device import DEVICE, SimulatedDevice
from simulated_streams import SimulatedStreams, install

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from kiv_fast.store import FastStore

HEADS, GROUPS, WIDTH, SCALE = 2, 2, 16, 0.25
CONFIG = KIVConfig(
    hot_tokens=64, sink_tokens=4, page_tokens=16, index_channels=8, candidate_tokens=64, retrieve_tokens=16
)
TOKEN = HEADS * 2 * WIDTH * 2
"""Bytes of a token's key and value in 16 bits."""

TUNING = Tuning(tile_bytes=4 * 16 * TOKEN, query_chunk=32)
"""Tiles of four pages."""


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[SimulatedStreams]:
    return install(monkeypatch)


@pytest.fixture
def device(streams: list[SimulatedStreams]) -> Iterator[SimulatedDevice]:
    with SimulatedDevice() as device:
        yield device


def draw(tokens: int, dtype: torch.dtype = torch.bfloat16, size: float = 1.0, batch: int = 1) -> list[torch.Tensor]:
    """Return keys, values and queries; logits grow with `size`."""
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(batch, heads, tokens, WIDTH) for heads in (HEADS, HEADS, HEADS * GROUPS)]
    key, value, query = (torch.randn(shape, generator=generator) for shape in shapes)
    return [part.to(dtype) for part in (key * size, value, query)]


def feed(
    store: FastStore, data: Sequence[torch.Tensor], chunk: int, valid: Any = None, **modifiers: Any
) -> torch.Tensor:
    """Append and attend chunk by chunk; outputs on the CPU."""
    outputs = []
    for start in range(0, data[0].shape[2], chunk):
        key, value, query = (part[:, :, start : start + chunk].to(DEVICE) for part in data)
        store.append(key, value, None if valid is None else valid[:, start : start + chunk].to(DEVICE))
        outputs.append(store.attend(query, scale=SCALE, **modifiers).cpu())
    return torch.cat(outputs, dim=2)


def full(data: Sequence[torch.Tensor], valid: torch.Tensor | None, softcap: float | None = None) -> list[torch.Tensor]:
    """Attend in float64: outputs, and the mean size of the values, by the same weights."""
    key, value, query = (part.double() for part in data)
    key, value = (part.repeat_interleave(GROUPS, dim=1) for part in (key, value))
    logits = SCALE * query @ key.transpose(2, 3)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    hidden = torch.ones(logits.shape[2:], dtype=torch.bool).triu(1)
    if valid is not None:
        hidden = hidden | ~valid[:, None, None]
    weights = torch.softmax(logits.masked_fill(hidden, -torch.inf), dim=3).nan_to_num(0.0)
    return [weights @ value, weights @ value.abs()]


def check(output: torch.Tensor, expected: list[torch.Tensor]) -> float:
    """Check an output against what SPEC 1.2 allows; return the share of numbers that need it."""
    unit = torch.finfo(output.dtype).eps / 2
    error, once = (output.double() - expected[0]).abs(), unit * expected[0].abs()
    assert (error <= once + 2 * unit * expected[1] + 1e-5).all()
    return (error > once + 1e-5).double().mean().item()


CASES = {
    "plain": CONFIG,
    "exact mode": replace(CONFIG, retrieve_tokens=None),
    "disk": replace(CONFIG, ram_bytes=60_000),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("padded", [False, True])
def test_fused_attention_attends_everything(
    device: SimulatedDevice,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    case: str,
    dtype: torch.dtype,
    padded: bool,
) -> None:
    def plain(*arguments: Any) -> None:
        raise AssertionError("logits were written out")

    monkeypatch.setattr(exact, "_plain", plain)
    data, valid = draw(520, dtype, batch=2), None
    if padded:
        valid = torch.ones(2, 520, dtype=torch.bool)
        valid[1, :130] = False  # more than a tile
        data = [part.masked_fill(~valid[:, None, :, None], torch.nan if n < 2 else 0) for n, part in enumerate(data)]
    store = FastPool(replace(CASES[case], spill_dir=tmp_path), tuning=TUNING).layer_store()
    output = feed(store, data, 128, valid)
    expected = full([part.nan_to_num() for part in data], valid)
    needed = check(output, expected)
    # So the clause is needed, and allows no more than it says.
    assert (needed > 0.02) == (dtype != torch.float32)
    assert state_of(store).cold.counters.streamed_bytes > 0


def test_a_soft_cap_that_no_attention_has_writes_logits_out(device: SimulatedDevice) -> None:
    data = draw(500)
    output = feed(FastPool(CONFIG, tuning=TUNING).layer_store(), data, 100, softcap=2.0)
    unit, expected = torch.finfo(torch.bfloat16).eps / 2, full(data, None, 2.0)[0]
    assert ((output.double() - expected).abs() <= unit * expected.abs() + 1e-5).all()


def test_huge_logits_are_seen_at_the_end_and_attended_again(device: SimulatedDevice) -> None:
    # Equal logits, so that the output is a mean, of which a log-sum-exp that large tells nothing.
    key, value, query = draw(300)
    data = [torch.full_like(key, 2.0**7), value, torch.full_like(query, 2.0**7)]
    output = feed(FastPool(CONFIG, tuning=TUNING).layer_store(), data, 100)
    expected = full(data, None)[0]
    assert ((output.double() - expected).abs() <= 2.0**-8 * expected.abs() + 1e-5).all()


def test_huge_logits_of_one_tile_alone(device: SimulatedDevice) -> None:
    key, value, query = draw(300)
    key = key.clone()
    key[:, :, 20:60] = 2.0**7  # the others are far below
    data = [key, value, torch.full_like(query, 2.0**7)]
    output = feed(FastPool(CONFIG, tuning=TUNING).layer_store(), data, 100)[:, :, 60:]
    expected = full(data, None)[0][:, :, 60:]
    assert ((output.double() - expected).abs() <= 2.0**-8 * expected.abs() + 1e-5).all()


def test_padding_within_a_tile(device: SimulatedDevice) -> None:
    data, valid = draw(300, batch=2), torch.ones(2, 300, dtype=torch.bool)
    valid[0, 100:103] = valid[1, 20:50:3] = False
    data = [part.masked_fill(~valid[:, None, :, None], 0) for part in data]
    check(feed(FastPool(CONFIG, tuning=TUNING).layer_store(), data, 60, valid), full(data, valid))


def peaks(device: SimulatedDevice, tokens: int, chunk: int) -> tuple[int, int, int]:
    """Prefill; return bytes of the device at the peak of the last call beyond what the store held before it and the
    call's own numbers, the number of tiles, and of waits."""
    config = replace(CONFIG, retrieve_tokens=None)  # without an index, which grows with the context
    store = FastPool(config, tuning=TUNING).layer_store()
    data = draw(tokens)
    feed(store, [part[:, :, : tokens - chunk] for part in data], chunk)
    key, value, query = (part[:, :, tokens - chunk :].to(DEVICE) for part in data)
    store.append(key, value)
    device.waits.clear()
    held = device.peak_bytes = device.nbytes
    output = store.attend(query, scale=SCALE)
    assert output.shape[2] == chunk
    tiles = -(-config.cold_pages(tokens - chunk) // state_of(store).tile_pages)
    return device.peak_bytes - held, tiles, len(device.waits)


def test_device_memory_is_bounded_by_chunk_and_tile(device: SimulatedDevice) -> None:
    peak, few, waits = peaks(device, 640, 64)
    more, many, same = peaks(device, 1920, 64)
    assert 3 * few <= many
    assert more == peak
    assert same == waits
    # What a call takes: its numbers in two dtypes, a running output, and what a tile adds to it.
    wider = peaks(device, 640, 128)[0]
    assert peak < wider < 2.2 * peak


def test_buffers_for_tiles_are_booked(device: SimulatedDevice) -> None:
    pool = FastPool(CONFIG, tuning=TUNING)
    store = pool.layer_store()
    feed(store, draw(500), 100)
    sizes = [buffer.nbytes for buffer in pool.scratch._buffers.values() if buffer.device == DEVICE]
    assert len(sizes) == 6  # keys and values of two tiles on their way, and of one in order
    assert sum(sizes) == 3 * TUNING.tile_bytes
    assert pool.scratch.nbytes >= sum(sizes)
    assert pool.memory().device >= device.nbytes


def test_buffers_that_do_not_fit_are_refused_before_anything_changes(device: SimulatedDevice) -> None:
    pool = FastPool(CONFIG, tuning=TUNING)
    whole = pool.layer_store()
    feed(whole, draw(500), 100)
    limit = pool.memory().device - 2 * TUNING.tile_bytes
    store = FastPool(replace(CONFIG, device_bytes=limit), tuning=TUNING).layer_store()
    data = draw(500)
    with pytest.raises(KIVBudgetError):
        feed(store, data, 100)
    length = store.length
    assert 0 < length < 500
    key, value, _ = (part[:, :, length : length + 100].to(DEVICE) for part in data)
    with pytest.raises(KIVBudgetError):
        store.append(key, value)
    assert store.length == length


def test_the_size_of_a_tile_depends_on_what_is_stored_alone(device: SimulatedDevice) -> None:
    sizes = set()
    for limit in (None, 1 << 20):
        store = FastPool(replace(CONFIG, device_bytes=limit), tuning=TUNING).layer_store()
        feed(store, draw(200), 100)
        sizes.add(state_of(store).tile_pages)
    assert sizes == {4}


def test_what_attends_is_told(device: SimulatedDevice) -> None:
    store = FastPool(CONFIG, tuning=TUNING).layer_store()
    feed(store, draw(40), 40)
    assert choice.told(state_of(store).shape) == "flash (bfloat16)"
