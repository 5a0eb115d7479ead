"""Which operations compute a step: by name, or those that can serve."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from kiv_reference.errors import KIVUnsupportedError, KIVUsageError, refuse

from ..device.graphs import graphs_for
from ..shape import Shape
from ..tuning import Tuning
from .addresses import KINDS
from .cpu import MOST_CHANNELS, CpuOps
from .decoding import Decoder
from .library import load, why_not
from .protocol import Ops
from .torch import TorchOps
from .triton import TritonDecoder, interpreted
from .triton import why_not as why_not_triton

OpsName = Literal["auto", "torch", "cpu", "triton"]


class OpsChoice:
    """By what the stores of a pool compute.

    Parameters
    ----------
    name : "auto", "torch", "cpu" or "triton"
    tuning : Tuning

    Raises
    ------
    KIVUsageError
        `name` is none of these.
    KIVUnsupportedError
        "cpu" was asked for, and the compiled library is missing; or "triton", and Triton is.
    """

    def __init__(self, name: OpsName, tuning: Tuning) -> None:
        if name not in get_args(OpsName):
            rule = 'ops must be "auto", "torch", "cpu" or "triton"'
            raise refuse(KIVUsageError, rule, repr(name), "Choose one of them.")
        self._name, self._library = name, load()
        if name == "cpu" and self._library is None:
            rule = 'ops="cpu" needs the operations that are compiled for this machine'
            raise refuse(KIVUnsupportedError, rule, why_not(), 'Choose ops="torch", or install a wheel that has them.')
        if name == "triton" and (reason := why_not_triton(torch.device("cuda"))):
            rule = 'ops="triton" needs Triton'
            raise refuse(KIVUnsupportedError, rule, reason, 'pip install "kiv-fast[triton]", or choose ops="auto".')
        self._tuning = tuning
        self._torch = TorchOps(tuning.chunk_bytes, tuning.kept_bytes)
        self._graphs = tuning.graphs and not interpreted()
        self._cpu = None
        if self._library is not None and name in ("auto", "cpu"):
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
        if shape.device.type == "cpu":
            return self._torch
        # Estimates of blocks that are answered together are kept, where any are.
        kept = self._tuning.kept_bytes
        return TorchOps(self._tuning.chunk_bytes, max(kept, self._tuning.together(shape.device)) if kept else 0)

    def decoder_of(self, shape: Shape) -> Decoder | None:
        """Return what decodes for stores of a shape, if a step of all sequences is one operation there.

        Raises
        ------
        KIVUnsupportedError
            "triton" was asked for where it cannot serve: its name never stands for another.
        """
        if self._name not in ("auto", "triton") or (self._name == "auto" and shape.device.type != "cuda"):
            return None
        reason = why_not_triton(shape.device)
        if shape.dtype not in KINDS:
            reason = f"{shape.dtype} is not among its dtypes"
        if reason is None:
            return TritonDecoder(graphs_for(shape.device) if self._graphs else None)
        if self._name == "triton":
            rule = 'ops="triton" serves float32, bfloat16 and float16 on CUDA and ROCm devices'
            raise refuse(KIVUnsupportedError, rule, reason, 'Choose ops="auto" or "torch".')
        return None

    def told(self, shape: Shape) -> str:
        """Say by what stores of a shape compute: "torch", "triton" with "torch", or "cpu" and its instructions."""
        ops, decoder = self.of(shape), self.decoder_of(shape)
        if decoder is not None:
            return f"{decoder.name} (decode), {ops.name}"
        if self._library is None or ops is not self._cpu:
            return ops.name
        return f"{ops.name} ({self._library.instructions})"
