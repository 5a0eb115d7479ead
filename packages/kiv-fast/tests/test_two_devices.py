"""Stores of one pool on two devices, as those of a model in parts: each step is begun on the device of its store."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from fast_helpers import assert_close, draw
from kiv_fast import FastPool
from simulated_device import DEVICE

pytest.importorskip("triton")

import simulated_launch
from kiv_fast.ops.triton.launch import launch
from simulated_launch import Graphs, step

if TYPE_CHECKING:
    from collections.abc import Generator

    from kiv_reference import KIVConfig

CPU = torch.device("cpu")
PROMPT, STEPS = 126, 4


class Current:
    """The current device, where Triton launches whatever it is given; nothing but `torch.cuda.device_of` changes it."""

    def __init__(self) -> None:
        self.device: torch.device | None = None
        self.launches = 0

    @contextmanager
    def of(self, tensor: torch.Tensor) -> Generator[None]:
        before, self.device = self.device, tensor.device
        try:
            yield
        finally:
            self.device = before

    def launch(self, kernel: Any, grid: tuple[int, ...], given: dict[str, Any], **more: Any) -> None:
        tensors = [given[name] for name in kernel.arg_names if isinstance(given.get(name), torch.Tensor)]
        assert tensors
        assert {tensor.device for tensor in tensors} == {self.device}
        self.launches += 1
        (simulated_launch.launch if self.device == DEVICE else launch)(kernel, grid, given, **more)


@pytest.mark.parametrize("recorded", [False, True], ids=["launched", "recorded"])
def test_steps_of_two_stores_in_turn(config: KIVConfig, monkeypatch: pytest.MonkeyPatch, recorded: bool) -> None:
    config, current = replace(config, page_tokens=16), Current()
    monkeypatch.setattr(torch.cuda, "device_of", current.of)
    graphs = Graphs() if recorded else None
    texts = [draw(seed, PROMPT + STEPS) for seed in (1, 2)]
    with simulated_launch.device(monkeypatch, current.launch, graphs):
        pool, alone = FastPool(config, ops="triton"), FastPool(config, ops="torch")
        both = [(pool.layer_store(), alone.layer_store(), text) for text in texts]
        for start, stop in ((0, PROMPT), *((at, at + 1) for at in range(PROMPT, PROMPT + STEPS))):
            for (store, right, text), at in zip(both, (CPU, DEVICE), strict=True):
                assert_close(step(store, text, start, stop, at).cpu(), step(right, text, start, stop, CPU))
                assert current.device is None
        for store, right, _ in both:
            (mine,), (theirs,) = store.report.blocks, right.report.blocks
            assert mine.mode == "retrieve"
            assert torch.equal(mine.selected_positions.cpu(), theirs.selected_positions)
        buffers = list(pool.scratch._buffers.values())  # pyright: ignore[reportPrivateUsage]
        planned = [pool.scratch.planned(device) for device in (CPU, DEVICE)]
        assert min(planned) > 0
        assert sum(planned) == pool.scratch.nbytes
        for device, most in zip((CPU, DEVICE), planned, strict=True):
            used = sum(part.nbytes for part in buffers if part.device == device)
            assert 0 < used <= most
        assert pool.operations == "triton (decode), torch"
        assert current.launches > 0
        assert graphs is None or graphs.replays > 0
