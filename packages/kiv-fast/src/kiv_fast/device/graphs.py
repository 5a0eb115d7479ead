"""Launches recorded once and repeated as one: CUDA graphs, or nothing where there are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class CudaGraphs:
    """Captures on a CUDA device (ROCm's are the same).

    Written from the documentation; not run by this project's tests, which have graphs of the simulated device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = None

    def capture(self, launches: Callable[[], None]) -> Callable[[], None]:
        """Record what is launched, which does not run; returns what repeats it all on the current stream.

        Everything was launched before in the same way, so that nothing is compiled or loaded now, and no memory is
        taken. Other threads go on meanwhile.

        Raises
        ------
        RuntimeError
            CUDA has refused.
        """
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)
        graph: Any = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                launches()
            finally:
                graph.capture_end()
        return graph.replay


def graphs_for(device: torch.device) -> CudaGraphs | None:
    """Return what records launches on a device; None where each is launched anew."""
    return CudaGraphs(device) if device.type == "cuda" else None
