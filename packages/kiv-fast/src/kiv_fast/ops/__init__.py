"""The operations of a step, each a paragraph of SPEC.md: `torch` is their definition, `cpu` is compiled."""

from __future__ import annotations

from typing import Literal

from kiv_reference.errors import KIVUnsupportedError, KIVUsageError, refuse

from ..memory.scratch import Scratch
from ..shape import Shape
from ..tuning import Tuning
from .cpu import KINDS, MOST_CHANNELS, CpuOps
from .library import load, why_not
from .protocol import Ops
from .torch import TorchOps

OpsName = Literal["auto", "torch", "cpu"]


def check_ops(name: object) -> None:
    """Refuse what names no operations, and compiled ones that are not there.

    Raises
    ------
    KIVUsageError
        `name` is none of "auto", "torch", "cpu".
    KIVUnsupportedError
        "cpu" was asked for, and the compiled library is missing.
    """
    if name not in ("auto", "torch", "cpu"):
        raise refuse(KIVUsageError, 'ops must be "auto", "torch" or "cpu"', repr(name), "Choose one of them.")
    if name == "cpu" and load() is None:
        rule = 'ops="cpu" needs the operations that are compiled for this machine'
        raise refuse(KIVUnsupportedError, rule, why_not(), 'Choose ops="torch", or install a wheel that has them.')


def choose_ops(name: OpsName, shape: Shape, scratch: Scratch, tuning: Tuning) -> Ops:
    """Return the operations for stores of `shape`.

    Raises
    ------
    KIVUnsupportedError
        "cpu" was asked for where it cannot serve: its name never stands for another.
    """
    library, able = load(), shape.dtype in KINDS and shape.device.type == "cpu" and shape.key_width <= MOST_CHANNELS
    if name != "torch" and library is not None and able:
        return CpuOps(library, scratch, tuning.kept_bytes)
    if name == "cpu":
        rule = f'ops="cpu" serves float32, bfloat16 and float16 on a CPU, up to {MOST_CHANNELS} channels'
        got = f"{shape.dtype} on {shape.device}, {shape.key_width} channels"
        raise refuse(KIVUnsupportedError, rule, got, 'Choose ops="auto" or "torch".')
    return TorchOps(tuning.chunk_bytes, tuning.kept_bytes)


__all__ = ["CpuOps", "Ops", "OpsName", "TorchOps", "check_ops", "choose_ops", "load"]
