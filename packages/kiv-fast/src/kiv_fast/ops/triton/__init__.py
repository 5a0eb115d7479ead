"""The decode step of a layer in few launches, for devices that Triton compiles for: CUDA and ROCm."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from ...device.graphs import CudaGraphs
from ..decoding import Decode, Decoded, Take

if TYPE_CHECKING:
    from .graph import StepGraph

KINDS = (torch.float32, torch.bfloat16, torch.float16)


def interpreted() -> bool:
    """Tell whether Triton's interpreter runs the kernels, on the CPU: to look for mistakes, not to compute."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_not(device: torch.device) -> str | None:
    """Say why a device cannot be served; None if it can."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    if interpreted() or device.type == "cuda":
        return None
    return f"Triton does not compile for {device.type!r}"


class TritonDecoder:
    """The decode step in Triton (`Decoder`), on the device of what it is given: Triton itself takes the current one.

    Parameters
    ----------
    graphs : CudaGraphs, optional
        What records the launches of a step, to repeat them as one.
    """

    name = "triton"

    def __init__(self, graphs: CudaGraphs | None = None) -> None:
        self._graphs = graphs
        self._graph: StepGraph | None = None

    def another(self) -> TritonDecoder:
        """Return one for another store (`Decoder.another`)."""
        return TritonDecoder(self._graphs)

    def step_bytes(self, asked: Decode) -> int:
        """Count the bytes that `decode` takes for itself (`Decoder.step_bytes`)."""
        from .sizes import bytes_of, sizes_of

        return bytes_of(sizes_of(asked))

    def held_bytes(self, asked: Decode) -> int:
        """Count the bytes that stay with the store (`Decoder.held_bytes`)."""
        if self._graphs is None:
            return 0
        from .results import graph_bytes
        from .sizes import sizes_of

        return graph_bytes(sizes_of(asked), _wide(asked))

    def append(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        hot: tuple[torch.Tensor, torch.Tensor],
        lengths: tuple[int, int, int, int],
        counts: torch.Tensor,
        odd: torch.Tensor,
    ) -> None:
        """Write one token of each sequence (`Decoder.append`)."""
        from .decode import append_token

        with torch.cuda.device_of(key):
            append_token(key, value, hot, lengths, counts, odd)

    def decode(self, asked: Decode, take: Take) -> Decoded:
        """Attend one query of each sequence (`Decoder.decode`)."""
        from .decode import decode  # imports Triton, which takes a second: only where it is wanted
        from .graph import StepGraph

        with torch.cuda.device_of(asked.query):
            if self._graphs is None:
                return decode(asked, take, _wide(asked))
            if self._graph is None:
                self._graph = StepGraph(self._graphs)
            return self._graph.decode(asked, take, _wide(asked))


def _wide(asked: Decode) -> bool:
    """Tell whether kernels must widen numbers: the interpreter has none of bfloat16, only their bits."""
    return interpreted() and asked.query.dtype == torch.bfloat16
