"""Query blocks and sequences that a device answers in the same launches: few of them, and each block as if alone."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from fast_helpers import SCALE, assert_close, state_of
from kiv_fast import FastPool, Tuning, together
from kiv_fast.memory.scratch import step_bytes, tile_bytes
from kiv_fast.state import State
from kiv_reference import KIVConfig, ReferencePool
from kiv_reference.errors import KIVBudgetError
from simulated_device import DEVICE, SimulatedDevice
from simulated_streams import install

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from kiv_fast.store import FastStore
    from kiv_reference.report import BlockReport

CONFIG = KIVConfig(
    hot_tokens=20,
    sink_tokens=2,
    page_tokens=32,
    index_channels=14,
    candidate_tokens=48,
    retrieve_tokens=8,
    prefill="retrieve",
    query_block_tokens=4,
    exact_suffix_tokens=3,
)
"""Eight blocks see the same pages; here and there a head is widened."""

ALONE = Tuning(together_bytes=0)

PROMPT, CHUNKS = 150, (74, 2, 1)
"""The prompt is read without a query; of the first call a page becomes cold amid it, and the last block is shorter."""


class Geometry(NamedTuple):
    batch: int = 1
    heads: int = 2
    groups: int = 2
    width: int = 16
    value_width: int = 16


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedDevice]:
    install(monkeypatch)
    with SimulatedDevice() as made:
        yield made


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Note how many blocks, and sequences, are answered together."""
    seen, real = list[tuple[int, int]](), together._answer_some

    def noting(*asked: Any) -> None:
        seen.append((len(asked[2]), asked[3].stop - asked[3].start))
        real(*asked)

    monkeypatch.setattr(together, "_answer_some", noting)
    return seen


def draw(geometry: Geometry, tokens: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[torch.Tensor]:
    """Return keys, values and queries."""
    batch, heads, count, *widths = geometry
    generator = torch.Generator().manual_seed(seed)
    shapes = zip((heads, heads, heads * count), (*widths, widths[0]), strict=True)
    return [torch.randn(batch, n, tokens, width, generator=generator).to(dtype) for n, width in shapes]


def play(
    store: Any, data: Sequence[torch.Tensor], at: torch.device, chunks: Sequence[int] = CHUNKS, **modifiers: Any
) -> tuple[torch.Tensor, list[BlockReport]]:
    """Read a prompt and answer calls: outputs on the CPU, and reports."""
    outputs, blocks, start = list[torch.Tensor](), list[Any](), PROMPT
    store.append(*(part[:, :, :PROMPT].to(at) for part in data[:2]))
    sinks = modifiers.pop("sink_logits", None)
    for n in chunks:
        key, value, query = (part[:, :, start : start + n].to(at) for part in data)
        store.append(key, value)
        more = modifiers if sinks is None else {**modifiers, "sink_logits": sinks[:, :, start : start + n].to(at)}
        outputs.append(store.attend(query, scale=SCALE, **more).cpu())
        blocks += store.report.blocks
        start += n
    return torch.cat(outputs, dim=2), blocks


def check_reports(one: Sequence[BlockReport], other: Sequence[BlockReport], close: float) -> None:
    """Check that reports are equal, masses to rounding."""
    assert len(one) == len(other)
    for mine, right in zip(one, other, strict=True):
        for field in fields(right):
            a, b = getattr(mine, field.name), getattr(right, field.name)
            if isinstance(b, torch.Tensor) and b.is_floating_point():
                torch.testing.assert_close(a.cpu(), b.cpu(), rtol=0, atol=close, check_dtype=False)
            elif isinstance(b, torch.Tensor):
                assert torch.equal(a.cpu(), b.cpu()), field.name
            else:
                assert a == b, field.name


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "max": ({"group": "max"}, {}),
    "no tail": ({"tail": "none"}, {"bound": True}),
    "soft cap": ({}, {"softcap": 2.0, "bound": True}),
    "learned sinks": ({"group": "max"}, {"sink_logits": True}),
    "no sinks": ({"sink_tokens": 0, "exact_suffix_tokens": 0}, {"softcap": 2.0, "sink_logits": True}),
    "never widened": ({"index_channels": 16}, {}),
    "widened": ({"index_channels": 3}, {}),
    "widened, no tail": ({"index_channels": 2, "tail": "none", "group": "max"}, {}),
}

GEOMETRIES = {
    "small": Geometry(),
    "batch": Geometry(batch=2),
    "one head": Geometry(batch=3, heads=1, groups=3, width=8, value_width=5),
    "no groups": Geometry(heads=3, groups=1, width=24, value_width=8),
}
PLACES = [
    *((case, "batch") for case in CASES),
    *(("plain", geometry) for geometry in GEOMETRIES if geometry != "batch"),
]


def learned(geometry: Geometry, modifiers: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Return modifiers with a sink logit for each query, if they have any."""
    if "sink_logits" not in modifiers:
        return modifiers
    shape = geometry.batch, geometry.heads * geometry.groups, PROMPT + sum(CHUNKS)
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    return {**modifiers, "sink_logits": logits}


@pytest.mark.parametrize(("case", "geometry"), PLACES)
def test_blocks_are_answered_as_the_reference_does(case: str, geometry: str, groups: list[tuple[int, int]]) -> None:
    more, modifiers = CASES[case]
    shape, config = GEOMETRIES[geometry], replace(CONFIG, **more)
    data = draw(shape, PROMPT + sum(CHUNKS), torch.float64)
    modifiers = learned(shape, modifiers, torch.float64)
    right, reports = play(ReferencePool(config).layer_store(), data, torch.device("cpu"), **modifiers)
    output, blocks = play(FastPool(config).layer_store(), data, DEVICE, **modifiers)
    assert_close(output, right)
    check_reports(blocks, reports, 2**-23)
    assert max(count for count, _ in groups) == 8
    assert {rows for _, rows in groups} == {shape.batch}


@pytest.mark.parametrize(
    ("case", "geometry", "dtype"),
    [*((*place, torch.float32) for place in PLACES), *((*place, torch.bfloat16) for place in PLACES[::3])],
    ids=str,
)
def test_blocks_are_answered_as_each_alone(case: str, geometry: str, dtype: torch.dtype) -> None:
    more, modifiers = CASES[case]
    shape, config = GEOMETRIES[geometry], replace(CONFIG, **more)
    data = draw(shape, PROMPT + sum(CHUNKS), dtype)
    modifiers = learned(shape, modifiers, torch.float32)
    right, reports = play(FastPool(config, tuning=ALONE).layer_store(), data, DEVICE, **modifiers)
    output, blocks = play(FastPool(config).layer_store(), data, DEVICE, **modifiers)
    check_reports(blocks, reports, 1e-5)
    if dtype == torch.float32:
        assert_close(output, right)
    else:
        torch.testing.assert_close(output, right, rtol=2**-7, atol=2**-9)


def test_a_head_is_widened_in_its_own_block_alone() -> None:
    config, data = replace(CONFIG, index_channels=12), draw(Geometry(batch=2), PROMPT + sum(CHUNKS))
    _, reports = play(FastPool(config, tuning=ALONE).layer_store(), data, DEVICE)
    _, blocks = play(FastPool(config).layer_store(), data, DEVICE)
    check_reports(blocks, reports, 1e-5)
    wide = [block.widened for block in blocks if block.mode == "retrieve"]
    assert any(bool(each.any()) and not bool(each.all()) for each in wide)  # one head of several
    assert not all(bool(each.any()) for each in wide)  # one block of several
    assert {block.candidate_positions.shape[2] for block in blocks if block.mode == "retrieve"} == {48, 96}


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


class Stop(BaseException):
    """What a signal's handler may raise."""


@pytest.mark.parametrize("error", [Stop, torch.OutOfMemoryError("injected")], ids=["interrupt", "memory"])
@pytest.mark.parametrize("nth", [0, 1, 2])
def test_a_call_that_breaks_off_leaves_the_store_as_it_was(
    monkeypatch: pytest.MonkeyPatch, error: Any, nth: int
) -> None:
    """Also where a page has left the hot window before the blocks that follow."""
    data = draw(Geometry(batch=2), PROMPT + sum(CHUNKS))
    right, reports = play(FastPool(CONFIG).layer_store(), data, DEVICE)
    store, real, left = FastPool(CONFIG).layer_store(), together.attend_block, [nth]

    def breaking(*asked: Any) -> Any:
        found = real(*asked)
        left[0] -= 1
        if left[0] == -1:
            raise error
        return found

    monkeypatch.setattr(together, "attend_block", breaking)
    attend = store.attend

    def twice(query: torch.Tensor, **modifiers: Any) -> torch.Tensor:
        if left[0] >= 0:
            before = store.memory(), store.tokens(), state_of(store).samples.count
            with pytest.raises((Stop, torch.OutOfMemoryError)):
                attend(query, **modifiers)
            assert (store.memory(), store.tokens(), state_of(store).samples.count) == before
        return attend(query, **modifiers)

    monkeypatch.setattr(store, "attend", twice)
    output, blocks = play(store, data, DEVICE)
    assert left[0] < 0
    assert torch.equal(output, right)
    check_reports(blocks, reports, 0)


def test_a_repeated_call_gives_the_same_bits(groups: list[tuple[int, int]]) -> None:
    """What the first one saw as hot is cold by then."""
    data = [part.to(DEVICE) for part in draw(Geometry(batch=2), PROMPT + 96)]
    store: FastStore = FastPool(CONFIG).layer_store()
    store.append(*(part[:, :, :PROMPT] for part in data[:2]))
    store.append(*(part[:, :, PROMPT:] for part in data[:2]))
    first, second = (store.attend(data[2][:, :, PROMPT:], scale=SCALE).cpu() for _ in range(2))
    assert torch.equal(first, second)
    assert groups[: len(groups) // 2] == groups[len(groups) // 2 :]


def test_infinite_values_are_seen_by_whom_they_concern() -> None:
    data = draw(Geometry(batch=2), PROMPT + sum(CHUNKS), torch.float64)
    data[1][0, 0, PROMPT + 20, 3], data[1][1, 1, 40, 2] = torch.inf, torch.nan
    right, _ = play(ReferencePool(CONFIG).layer_store(), data, torch.device("cpu"))
    output, _ = play(FastPool(CONFIG).layer_store(), data, DEVICE)
    assert torch.isinf(right).any()
    assert not torch.isfinite(right).all(dim=3).all()
    assert_close(output, right, equal_nan=True)


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
