"""How a step comes, by which a graph is told from one of other memory: whatever its kernels are given tells."""

from __future__ import annotations

from dataclasses import fields, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from fast_helpers import SCALE, draw
from kiv_fast import FastPool
from kiv_fast.device.kept import Kept
from kiv_fast.ops.decoding import Decode
from simulated_device import DEVICE

pytest.importorskip("triton")

import simulated_launch
from kiv_fast.ops.triton.graph import StepGraph, _how
from kiv_fast.ops.triton.sizes import sizes_of
from simulated_launch import Graphs, step

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kiv_reference import KIVConfig
    from simulated_device import SimulatedDevice

PROMPT = 108


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedDevice]:
    """A device that has graphs."""
    with simulated_launch.device(monkeypatch, graphs=Graphs()) as made:
        yield made


class Found(Exception):
    """What a step is asked, in the place of its answer."""


@pytest.fixture
def asked(config: KIVConfig, device: SimulatedDevice, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what a step that retrieves is asked, with learned sinks and rows that are kept."""

    def found(self: object, asked: object, *more: object) -> None:
        raise Found(asked)

    data = draw(10, PROMPT + 1)
    store = FastPool(config, ops="triton").layer_store()
    step(store, data, 0, PROMPT)
    key, value, query = (part[:, :, PROMPT:].to(DEVICE) for part in data)
    store.append(key, value)
    monkeypatch.setattr(StepGraph, "decode", found)
    with pytest.raises(Found) as raised:
        store.attend(query, scale=SCALE, sink_logits=torch.zeros(query.shape[1], device=DEVICE))
    return raised.value.args[0]


def buffers(version: int) -> Any:
    """Return buffers that lie somewhere, with another number elsewhere."""
    return SimpleNamespace(version=version)


def elsewhere(value: Any) -> list[Any]:
    """Return a tensor in another place, each of several, or another number."""
    if isinstance(value, torch.Tensor):
        return [value.new_empty(1).expand(value.shape)]
    if isinstance(value, tuple):
        return [(*value[:at], one, *value[at + 1 :]) for at, part in enumerate(value) for one in elsewhere(part)]
    if isinstance(value, bool) or value is None:
        return [1.0 if value is None else not value]
    if isinstance(value, Kept):
        changed = [
            replace(value, **{name: one})
            for name in ("keys", "values", "use")
            for one in elsewhere(getattr(value, name))
        ]
        return [None, *changed]
    return [value / 2 if isinstance(value, float) else value - 1]


@pytest.mark.parametrize(
    "name", [field.name for field in fields(Decode) if field.name not in ("query", "pages", "sink_logits")]
)
def test_a_step_that_comes_otherwise_is_told(asked: Any, name: str) -> None:
    """Whatever a kernel is given, but for what is copied or lies on the device."""
    mine = _how(asked, sizes_of(asked), buffers(1))
    assert mine == _how(asked, sizes_of(asked), buffers(1)) != _how(asked, sizes_of(asked), buffers(2))
    for value in elsewhere(getattr(asked, name)):
        other = replace(asked, **{name: value})
        assert _how(other, sizes_of(other), buffers(1)) != mine


def test_a_query_may_lie_elsewhere(asked: Any) -> None:
    other = replace(asked, query=asked.query.clone(), sink_logits=asked.sink_logits.clone())
    assert _how(other, sizes_of(other), buffers(1)) == _how(asked, sizes_of(asked), buffers(1))
    less = replace(asked, sink_logits=None)
    assert _how(less, sizes_of(less), buffers(1)) != _how(asked, sizes_of(asked), buffers(1))
