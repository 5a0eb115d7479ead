"""Query blocks and sequences that a device answers in the same launches: each block as if alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from blocks_together import ALONE, CHUNKS, CONFIG, PROMPT, Geometry, check_reports, draw, note_shares, play
from fast_helpers import SCALE, assert_close, state_of
from kiv_fast import FastPool, together
from kiv_reference import ReferencePool
from simulated_device import DEVICE, SimulatedDevice
from simulated_streams import install

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kiv_fast.store import FastStore


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedDevice]:
    install(monkeypatch)
    with SimulatedDevice() as made:
        yield made


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    return note_shares(monkeypatch)


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


@pytest.mark.parametrize(
    ("at", "padded", "bound"),
    [(DEVICE, False, False), (DEVICE, False, True), (DEVICE, True, False), (torch.device("cpu"), False, True)],
    ids=str,
)
def test_blocks_with_nothing_to_choose_are_answered_as_the_reference_does(
    at: torch.device, padded: bool, bound: bool
) -> None:
    """The first blocks of a prompt are exact; then come some with a choice, and the exact end."""
    config = replace(CONFIG, candidate_tokens=64, exact_suffix_tokens=9)
    data = draw(Geometry(batch=2), 150, torch.float64)
    valid = torch.tensor([0, 37])[:, None] <= torch.arange(150) if padded else None
    outputs, reports = list[torch.Tensor](), list[Any]()
    for pool, place in ((ReferencePool(config), torch.device("cpu")), (FastPool(config), at)):
        store = pool.layer_store()
        key, value, query = (part.to(place) for part in data)
        store.append(key, value, None if valid is None else valid.to(place))
        outputs.append(store.attend(query, scale=SCALE, bound=bound).cpu())
        reports.append(store.report.blocks)
    assert_close(outputs[1], outputs[0])
    check_reports(reports[1], reports[0], 2**-23)
    modes = [block.mode for block in reports[0]]
    assert (modes[:20], modes[-1], "retrieve" in modes) == (["exact"] * 20, "exact", True)
    assert {block.cold_pages for block in reports[0] if block.mode == "exact"} >= {0, 1, 2}


def test_a_head_is_widened_in_its_own_block_alone() -> None:
    config, data = replace(CONFIG, index_channels=12), draw(Geometry(batch=2), PROMPT + sum(CHUNKS))
    _, reports = play(FastPool(config, tuning=ALONE).layer_store(), data, DEVICE)
    _, blocks = play(FastPool(config).layer_store(), data, DEVICE)
    check_reports(blocks, reports, 1e-5)
    wide = [block.widened for block in blocks if block.mode == "retrieve"]
    assert any(bool(each.any()) and not bool(each.all()) for each in wide)  # one head of several
    assert not all(bool(each.any()) for each in wide)  # one block of several
    assert {block.candidate_positions.shape[2] for block in blocks if block.mode == "retrieve"} == {48, 96}


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
