"""Triton's kernels on the simulated device: the interpreter runs them on the numbers behind it; they are counted."""

from __future__ import annotations

import os
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
from kiv_fast.ops.triton import launch as module
from simulated_device import OnDevice, SimulatedDevice
from triton import language
from triton.runtime.interpreter import InterpretedFunction

assert isinstance(language.zeros, InterpretedFunction), "set TRITON_INTERPRET=1: Triton was imported before"

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
