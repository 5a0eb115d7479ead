"""Triton's kernels on the simulated device: the interpreter runs them on the numbers behind it; they are counted."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from fast_helpers import SCALE
from kiv_fast.ops import choice
from kiv_fast.ops.triton import decode
from kiv_fast.ops.triton import launch as module
from simulated_device import DEVICE, OnDevice, SimulatedDevice
from simulated_streams import install

from conformance import interpreter as interpreter  # for its speed
from conformance.recorded import RecordedGraphs

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    import pytest
    from kiv_fast.store import FastStore

names: list[str] = []
"""The kernels launched so far."""


def launch(kernel: Any, grid: tuple[int, ...], given: dict[str, Any], **more: Any) -> None:
    """Run a kernel whose tensors are all on the device."""
    mine = {name: given[name] for name in kernel.arg_names if name not in more}
    tensors = [value for value in mine.values() if isinstance(value, torch.Tensor)]
    assert all(isinstance(tensor, OnDevice) for tensor in tensors), f"{kernel.__name__} mixes devices"
    names.append(kernel.__name__)
    behind = {name: SimulatedDevice.inner(value) for name, value in mine.items()}
    module.launch(kernel, grid, behind, **more)


class Graphs(RecordedGraphs):
    """Graphs of the simulated device: a replay is one launch, "graph"."""

    def capture(self, launches: Callable[[], None]) -> Callable[[], None]:
        replay = super().capture(launches)

        def counted() -> None:
            names.append("graph")
            replay()

        return counted


@contextmanager
def device(
    monkeypatch: pytest.MonkeyPatch, launched: Callable[..., None] = launch, graphs: Graphs | None = None
) -> Generator[SimulatedDevice]:
    """Give a device that reads host memory by itself, on which kernels are `launched`; with graphs, or without."""
    install(monkeypatch)
    monkeypatch.setattr(decode, "launch", launched)
    monkeypatch.setattr(choice, "interpreted", lambda: False)
    monkeypatch.setattr(choice, "graphs_for", lambda device: graphs)  # pyright: ignore[reportUnknownLambdaType]
    with SimulatedDevice() as made:
        yield made


def step(
    store: FastStore, data: Sequence[torch.Tensor], start: int, stop: int, at: torch.device = DEVICE
) -> torch.Tensor:
    """Append and attend tokens ``[start, stop)``; the output."""
    key, value, query = (part[:, :, start:stop].to(at) for part in data)
    store.append(key, value)
    return store.attend(query, scale=SCALE)
