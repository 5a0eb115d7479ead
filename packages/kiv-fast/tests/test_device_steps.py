"""Decode steps of a device in Triton, on a simulated one: few launches, no wait of the host, and the CPU's answers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from fast_helpers import SCALE, assert_close, draw
from kiv_fast import FastPool
from kiv_reference.errors import KIVNonFiniteError
from simulated_device import DEVICE, SimulatedDevice

pytest.importorskip("triton")

import simulated_launch
from simulated_launch import step

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kiv_fast.ops import OpsName
    from kiv_fast.store import FastStore
    from kiv_reference import KIVConfig

CPU = torch.device("cpu")
PROMPT, STEPS = 126, 4
"""The first of the steps looks up the pages and makes buffers, the second has a sampled query (SPEC 3.2)."""


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedDevice]:
    """A device that reads host memory by itself."""
    with simulated_launch.device(monkeypatch) as made:
        yield made


def prompt(config: KIVConfig, data: Sequence[torch.Tensor]) -> FastStore:
    """Return a store on the device that has read the prompt."""
    store = FastPool(config, ops="triton").layer_store()
    step(store, data, 0, PROMPT)
    return store


def launches(device: SimulatedDevice, store: FastStore, data: Sequence[torch.Tensor], at: int) -> list[str]:
    """Take a step, and return what was launched for it, other operations on tensors of the device too."""
    key, value, query = (part[:, :, at : at + 1].to(DEVICE) for part in data)
    simulated_launch.names.clear()
    device.waits.clear()
    device.operations.clear()
    store.append(key, value)
    store.attend(query, scale=SCALE)
    return simulated_launch.names + device.operations


RETRIEVES = ["append", "scan", "rank", "choose", "read", "read", "attend", "combine"]
"""The second read is of candidates that heads take more of."""

EXACT = ["append", "attend", "combine"]


@pytest.fixture
def config(config: KIVConfig) -> KIVConfig:
    """Return pages none of which becomes cold in the steps."""
    return replace(config, page_tokens=16)


@pytest.mark.parametrize(("candidates", "expected"), [(20, RETRIEVES), (10**6, EXACT)], ids=["retrieve", "exact"])
def test_a_step_is_eight_launches_and_no_wait(
    config: KIVConfig, device: SimulatedDevice, candidates: int, expected: list[str]
) -> None:
    data = draw(0, PROMPT + STEPS)
    store = prompt(replace(config, candidate_tokens=candidates), data)
    for at in range(PROMPT, PROMPT + STEPS):
        found = launches(device, store, data, at)
        assert device.waits == []
        assert found[: len(expected)] == expected
        assert found == expected or at < PROMPT + 2


@pytest.mark.parametrize("fields", [{}, {"tail": "none"}, {"group": "max"}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_answers_as_the_cpu_does(
    config: KIVConfig, device: SimulatedDevice, fields: dict[str, Any], dtype: torch.dtype
) -> None:
    config = replace(config, **fields)
    data = draw(1, PROMPT + STEPS, dtype=dtype)
    other = FastPool(config, ops="torch").layer_store()
    step(other, data, 0, PROMPT, CPU)
    store = prompt(config, data)
    for at in range(PROMPT, PROMPT + STEPS):
        mine, right = step(store, data, at, at + 1), step(other, data, at, at + 1, CPU)
        for a, b in zip(store.report.blocks, other.report.blocks, strict=True):
            assert torch.equal(a.candidate_positions.cpu(), b.candidate_positions)
            assert torch.equal(a.selected_positions.cpu(), b.selected_positions)
            assert (a.key_bytes, a.value_bytes, a.mode) == (b.key_bytes, b.value_bytes, b.mode)
        if dtype == torch.float32:
            assert_close(mine.cpu(), right)
        else:
            torch.testing.assert_close(mine.cpu(), right, rtol=2**-7, atol=2**-7)


def test_a_window_that_grows_has_all_tokens(config: KIVConfig, device: SimulatedDevice) -> None:
    """A token that finds no room is appended by other operations, which tell the device nothing by themselves."""
    data = draw(5, 40)
    stores = [FastPool(replace(config, hot_tokens=64), ops=ops).layer_store() for ops in ("triton", "torch")]
    for start, stop in ((0, 12), (12, 31), *((at, at + 1) for at in range(31, 37))):
        mine, right = (step(store, data, start, stop, at) for store, at in zip(stores, (DEVICE, CPU), strict=True))
        assert_close(mine.cpu(), right)


def test_scores_may_lie_far_apart(config: KIVConfig, device: SimulatedDevice) -> None:
    """So far that only one member has a weight, and that a power of a size is more than float32 has (SPEC 5.4).

    One coded channel knows so little of a key that what was not selected may be guessed to have all the mass.
    """
    config = replace(config, page_tokens=4, index_channels=1, hot_tokens=0, sink_tokens=0, candidate_tokens=13)
    config = replace(config, retrieve_tokens=4, prefill="retrieve")
    generator = torch.Generator().manual_seed(3)
    data = [torch.randn(2, heads, 44, width, generator=generator) for heads, width in ((2, 8), (2, 3), (6, 8))]
    data = [data[0] * 1e9, data[1], data[2] * 1e9]
    outputs = list[torch.Tensor]()
    every: tuple[tuple[OpsName, torch.device], ...] = (("triton", DEVICE), ("torch", CPU))
    for ops, at in every:
        store = FastPool(config, ops=ops).layer_store()
        store.append(*(part[:, :, :41].to(at) for part in data[:2]))
        outputs.append(torch.cat([step(store, data, n, n + 1, at).cpu() for n in (41, 42, 43)], dim=2))
    assert_close(*outputs)


@pytest.mark.parametrize(("later", "part"), [("append", 0), ("append", 2), ("crop", 0), ("fork", 2), ("report", 2)])
def test_a_token_that_is_refused_late_is_gone(
    config: KIVConfig, device: SimulatedDevice, later: str, part: int
) -> None:
    data = draw(2, PROMPT + STEPS)
    bad = [tensor.clone() for tensor in data]
    bad[part][0, 0, PROMPT + 1, 3] = torch.nan
    right = prompt(config, data)
    step(right, data, PROMPT, PROMPT + 1)
    store = prompt(config, data)
    step(store, data, PROMPT, PROMPT + 1)
    step(store, bad, PROMPT + 1, PROMPT + 2)
    key, value, query = (tensor[:, :, PROMPT + 1 : PROMPT + 2].to(DEVICE) for tensor in data)
    calls = {
        "append": lambda: store.append(key, value),
        "crop": lambda: store.crop(PROMPT + 2),
        "fork": store.fork,
        "report": lambda: store.report,
    }
    with pytest.raises(KIVNonFiniteError, match=f"position {PROMPT + 1}"):
        calls[later]()
    assert store.length == PROMPT + 1
    for each in (store, right):
        each.append(key, value)
    assert torch.equal(*(each.attend(query, scale=SCALE).cpu() for each in (store, right)))
    assert store.report.key_bytes == right.report.key_bytes  # nothing more is refused


def test_a_crop_that_drops_a_token_refuses_it_no_more(config: KIVConfig, device: SimulatedDevice) -> None:
    data = draw(2, PROMPT + STEPS)
    bad = [tensor.clone() for tensor in data]
    bad[0][0, 0, PROMPT + 1, 3] = torch.nan
    store, right = prompt(config, data), prompt(config, data)
    for each, mine in ((store, bad), (right, data)):
        step(each, mine, PROMPT, PROMPT + 1)
        step(each, mine, PROMPT + 1, PROMPT + 2)
        each.crop(PROMPT + 1)
        assert each.length == PROMPT + 1
    answers = [step(each, data, PROMPT + 1, PROMPT + 2).cpu() for each in (store, right)]
    assert torch.equal(*answers)


def test_an_infinite_value_is_no_error(config: KIVConfig, device: SimulatedDevice) -> None:
    data = draw(3, PROMPT + STEPS)
    data[1][0, 0, PROMPT, 3] = torch.inf
    store = prompt(config, data)
    assert torch.isinf(step(store, data, PROMPT, PROMPT + 1).cpu()[0, :2, 0, 3]).all()
    step(store, data, PROMPT + 1, PROMPT + 2)
    state = store.state
    assert state is not None
    assert not state.finite
