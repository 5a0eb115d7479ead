"""A step that comes as the last one did is one graph: the same numbers, fewer launches, until memory moves.

On the simulated device, whose graphs keep no memory alive, as CUDA's do not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from fast_helpers import SCALE, draw
from kiv_fast import FastPool
from kiv_fast.store import FastStore
from kiv_fast.tuning import Tuning
from kiv_reference.errors import KIVNonFiniteError
from simulated_device import DEVICE

pytest.importorskip("triton")

import simulated_launch
from simulated_launch import Graphs, step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kiv_reference import KIVConfig
    from simulated_device import SimulatedDevice

PROMPT, STEPS = 108, 14
"""Steps in which pages become cold, there is no room for one more, and the window is full, each more than once."""


@pytest.fixture
def graphs() -> Graphs:
    """Graphs of the device."""
    return Graphs()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, graphs: Graphs) -> Iterator[SimulatedDevice]:
    """A device that has graphs."""
    with simulated_launch.device(monkeypatch, graphs=graphs) as made:
        yield made


def stores(config: KIVConfig, data: Sequence[torch.Tensor]) -> tuple[FastStore, FastStore]:
    """Return two that have read the prompt: one with graphs, and one that has none."""
    made = tuple(FastPool(config, tuning=Tuning(graphs=on), ops="triton").layer_store() for on in (True, False))
    for store in made:
        step(store, data, 0, PROMPT)
    return made[0], made[1]


def assert_alike(one: FastStore, other: FastStore, data: Sequence[torch.Tensor], start: int, stop: int) -> None:
    """Take the same steps; outputs, reports and what is kept of rows are the same to the bit."""
    for at in range(start, stop):
        outputs = [step(store, data, at, at + 1).cpu() for store in (one, other)]
        assert torch.equal(*outputs)
        for a, b in zip(one.report.blocks, other.report.blocks, strict=True):
            assert torch.equal(a.candidate_positions.cpu(), b.candidate_positions.cpu())
            assert torch.equal(a.selected_positions.cpu(), b.selected_positions.cpu())
            assert torch.equal(a.exact_mass.cpu(), b.exact_mass.cpu())
            assert (a.kept_bytes, a.key_bytes) == (b.kept_bytes, b.key_bytes)


@pytest.mark.parametrize(
    ("changed", "dtype"),
    [
        ({}, torch.float32),
        ({"candidate_tokens": 10**6}, torch.bfloat16),
        ({"group": "max", "tail": "none"}, torch.bfloat16),
    ],
    ids=str,
)
def test_steps_are_the_same(
    config: KIVConfig, device: SimulatedDevice, graphs: Graphs, changed: dict[str, Any], dtype: torch.dtype
) -> None:
    data = draw(0, PROMPT + STEPS, dtype=dtype)
    one, other = stores(replace(config, **changed), data)
    assert_alike(one, other, data, PROMPT, PROMPT + STEPS)
    assert graphs.captures > 1
    assert graphs.replays > 2


def test_a_graph_is_four_launches(config: KIVConfig, device: SimulatedDevice, graphs: Graphs) -> None:
    data = draw(1, PROMPT + 8)
    store, _ = stores(replace(config, page_tokens=32), data)
    found = list[list[str]]()
    for at in range(PROMPT, PROMPT + 5):
        key, value, query = (part[:, :, at : at + 1].to(DEVICE) for part in data)
        for counted in (simulated_launch.names, device.operations, device.waits):
            counted.clear()
        store.append(key, value)
        store.attend(query, scale=SCALE)
        assert device.waits == []
        found.append(simulated_launch.names + device.operations)
    assert found[-2:] == [["append", "graph", "copy_", "clone"]] * 2
    assert graphs.captures == 1


def test_it_serves_until_there_is_no_room(config: KIVConfig, device: SimulatedDevice, graphs: Graphs) -> None:
    """Room grows by an eighth: of 32 to 64 pages, ids move at every fourth, the index at others, nothing else."""
    data = draw(2, 180)
    store = FastPool(config, ops="triton").layer_store()
    step(store, data, 0, 146)
    captured = list[int]()
    for at in range(146, 146 + 5 * config.page_tokens):
        before = graphs.captures
        step(store, data, at, at + 1)
        if graphs.captures > before:
            captured.append(store.report.blocks[0].cold_pages)
    assert captured == [34, 35, 37]
    assert graphs.replays > 10


def test_lives_of_a_store(config: KIVConfig, device: SimulatedDevice, graphs: Graphs) -> None:
    """Forks, crops, other orders of sequences, prompts in between and other stores' buffers."""
    config = replace(config, page_tokens=16)
    data = draw(3, PROMPT + STEPS, batch=2, heads=1)
    one, other = stores(config, data)
    at = PROMPT + 3
    assert_alike(one, other, data, PROMPT, at)
    large = draw(4, 300, batch=2, heads=1)
    changes: list[Callable[[FastStore], object]] = [
        lambda store: store.crop(at - 3),
        lambda store: store.reorder(torch.tensor([1, 0], device=DEVICE)),
        lambda store: step(store, data, at, at + 5),
        lambda store: step(FastStore(store._pool), large, 0, 300),  # needs larger buffers
    ]
    for change in changes:
        for store in (one, other):
            change(store)
        assert_alike(one, other, data, at + 5, at + 9)
    forks, before = (one.fork(), other.fork()), graphs.captures
    assert before >= 3  # of its own, of other sequences, of larger buffers; a crop moves nothing
    assert_alike(*forks, data, at, at + 3)
    assert graphs.captures == before + 1
    replays = graphs.replays
    assert_alike(one, other, data, at + 5, at + 6)
    assert graphs.replays == replays + 1  # what a fork does moves nothing


def test_a_report_is_of_its_own_step(config: KIVConfig, device: SimulatedDevice) -> None:
    data = draw(5, PROMPT + 12)
    one, other = stores(replace(config, page_tokens=32), data)
    outputs = [step(store, data, at, at + 1) for at in range(PROMPT, PROMPT + 4) for store in (one, other)]
    fork, noted = one.fork(), outputs[-2].cpu().clone()
    step(one, data, PROMPT + 4, PROMPT + 5)
    assert torch.equal(outputs[-2].cpu(), noted)
    mine, right = fork.report.blocks[0], other.report.blocks[0]
    assert torch.equal(mine.candidate_positions.cpu(), right.candidate_positions.cpu())
    assert torch.equal(mine.exact_mass.cpu(), right.exact_mass.cpu())


def test_learned_sinks_are_those_of_the_step(config: KIVConfig, device: SimulatedDevice, graphs: Graphs) -> None:
    data = draw(6, PROMPT + 4)
    pair = stores(replace(config, page_tokens=32), data)
    for at in range(PROMPT, PROMPT + 4):
        outputs = list[torch.Tensor]()
        for store in pair:
            key, value, query = (part[:, :, at : at + 1].to(DEVICE) for part in data)
            sinks = torch.randn(query.shape[1], generator=torch.Generator().manual_seed(at)).to(DEVICE)
            store.append(key, value)
            outputs.append(store.attend(query, scale=SCALE, sink_logits=sinks).cpu())
        assert torch.equal(*outputs)
    assert graphs.replays > 0


def test_a_token_is_refused_after_a_graph_too(config: KIVConfig, device: SimulatedDevice, graphs: Graphs) -> None:
    data = draw(7, PROMPT + 12)
    one, other = stores(replace(config, page_tokens=32), data)
    at = PROMPT + 4
    assert_alike(one, other, data, PROMPT, at)
    bad = [part.clone() for part in data]
    bad[2][0, 0, at, 1] = torch.nan
    assert graphs.replays > 0
    for store in (one, other):
        step(store, bad, at, at + 1)
        with pytest.raises(KIVNonFiniteError, match=f"position {at}"):
            store.crop(at + 1)
    assert_alike(one, other, data, at, at + 3)


def test_without_graphs_it_still_works(
    config: KIVConfig, device: SimulatedDevice, graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver may refuse a capture: it is asked once, and says why."""
    asked = list[object]()

    def refuse(*given: object) -> None:
        asked.append(given)
        raise RuntimeError("operation not permitted")

    monkeypatch.setattr(graphs, "capture", refuse)
    data = draw(8, PROMPT + 6)
    one, other = stores(replace(config, page_tokens=32), data)
    with pytest.warns(RuntimeWarning, match="operation not permitted"):
        assert_alike(one, other, data, PROMPT, PROMPT + 4)
    assert len(asked) == 1


def test_its_memory_is_counted(config: KIVConfig, device: SimulatedDevice) -> None:
    data = draw(9, PROMPT + 6)
    one, other = stores(replace(config, page_tokens=32), data)
    assert_alike(one, other, data, PROMPT, PROMPT + 3)
    more = one.memory().device - other.memory().device
    captured: Any = one.state.decoder._graph._captured  # pyright: ignore
    query, sinks = captured.query, 4 * captured.query.shape[1]  # learned ones, which there may be
    assert more == query.nbytes + captured.memory.nbytes + sinks
    one.reset()
    assert one.memory().device == 0
