"""The operations of a step, each a paragraph of SPEC.md: `torch` is their definition, `cpu` is compiled."""

from __future__ import annotations

from typing import Literal

from kiv_reference.errors import KIVUnsupportedError, KIVUsageError, refuse

from ..shape import Shape
from ..tuning import Tuning
from .addresses import KINDS
from .cpu import MOST_CHANNELS, CpuOps
from .library import load, why_not
from .protocol import Ops
from .torch import TorchOps

OpsName = Literal["auto", "torch", "cpu"]


class OpsChoice:
    """By what the stores of a pool compute.

    Parameters
    ----------
    name : "auto", "torch" or "cpu"
    tuning : Tuning

    Raises
    ------
    KIVUsageError
        `name` is none of these.
    KIVUnsupportedError
        "cpu" was asked for, and the compiled library is missing.
    """

    def __init__(self, name: OpsName, tuning: Tuning) -> None:
        if name not in ("auto", "torch", "cpu"):
            raise refuse(KIVUsageError, 'ops must be "auto", "torch" or "cpu"', repr(name), "Choose one of them.")
        self._name, self._library = name, load()
        if name == "cpu" and self._library is None:
            rule = 'ops="cpu" needs the operations that are compiled for this machine'
            raise refuse(KIVUnsupportedError, rule, why_not(), 'Choose ops="torch", or install a wheel that has them.')
        self._torch = TorchOps(tuning.chunk_bytes, tuning.kept_bytes)
        self._cpu = None
        if self._library is not None and name != "torch":
            self._cpu = CpuOps(self._library)

    def of(self, shape: Shape) -> Ops:
        """Return the operations for stores of a shape.

        Raises
        ------
        KIVUnsupportedError
            "cpu" was asked for where it cannot serve: its name never stands for another.
        """
        able = shape.dtype in KINDS and shape.device.type == "cpu" and shape.key_width <= MOST_CHANNELS
        if self._cpu is not None and able:
            return self._cpu
        if self._name == "cpu":
            rule = f'ops="cpu" serves float32, bfloat16 and float16 on a CPU, up to {MOST_CHANNELS} channels'
            got = f"{shape.dtype} on {shape.device}, {shape.key_width} channels"
            raise refuse(KIVUnsupportedError, rule, got, 'Choose ops="auto" or "torch".')
        return self._torch

    def told(self, shape: Shape) -> str:
        """Say by what stores of a shape compute: "torch", or "cpu" and its instructions."""
        ops = self.of(shape)
        return ops.name if self._library is None or ops is self._torch else f"{ops.name} ({self._library.instructions})"


__all__ = ["CpuOps", "Ops", "OpsChoice", "OpsName", "TorchOps", "load"]
