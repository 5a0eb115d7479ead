"""From host to device: what leaves the host through a staging slot may be overwritten only once its copy is over.

On a CPU there is nothing to move. On another device, rows gathered on the host go through two pinned slots in turn, so
that the next gather overlaps the last copy. Streams and events are behind `CudaStreams`, in whose stead tests run
copies late.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch


class CudaStreams:
    """The parts of a CUDA device's runtime that a transfer needs.

    Written from the documentation; not run by this project's tests.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def pinned(self, nbytes: int) -> torch.Tensor:
        """Make host memory, uint8 ``[nbytes]``: pinned, or ordinary with a warning."""
        try:
            return torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=True)
        except RuntimeError as error:
            warnings.warn(f"host memory was not pinned ({error}): copies will be slow", RuntimeWarning, stacklevel=2)
            return torch.empty(nbytes, dtype=torch.uint8, device="cpu")

    def copy(self, host: torch.Tensor) -> torch.Tensor:
        """Begin to copy to the device, on the current stream, where the arithmetic that follows waits for it."""
        return host.to(self._device, non_blocking=True)

    def send(self, host: torch.Tensor) -> torch.Tensor:
        """Copy memory that is not pinned: the driver takes the numbers before this returns."""
        return host.to(self._device, non_blocking=True)

    def fetch(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Begin to copy to the host; returns what waits for the numbers and gives them."""
        host = self.pinned(tensor.numel() * tensor.element_size()).view(tensor.dtype).view(tensor.shape)
        host.copy_(tensor, non_blocking=True)
        wait = self.record()

        def numbers() -> torch.Tensor:
            wait()
            return host

        return numbers

    def record(self) -> Callable[[], None]:
        """Mark the point after all copies begun so far; returns what blocks the host until they are over."""
        event: Any = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event.synchronize


class Transfer:
    """Moves rows to where the arithmetic is, and back.

    Parameters
    ----------
    streams : CudaStreams, optional
        None on a CPU: the rows are where they are needed, until the next gather.
    """

    def __init__(self, streams: CudaStreams | None = None) -> None:
        self.streams = streams
        self._slots: list[tuple[torch.Tensor, Callable[[], None]] | None] = [None, None]
        self._turn = 0

    def upload(self, host: torch.Tensor) -> torch.Tensor:
        """Copy through the next slot, which is filled again only after its last copy is over."""
        if self.streams is None:
            return host
        turn, self._turn = self._turn, 1 - self._turn
        held, buffer = self._slots[turn], None
        if held is not None:
            buffer, wait = held
            wait()
        nbytes = host.numel() * host.element_size()
        if buffer is None or buffer.numel() < nbytes:
            buffer = self.streams.pinned(1 << max(0, nbytes - 1).bit_length())
        slot = buffer[:nbytes].view(host.dtype).view(host.shape)
        slot.copy_(host)
        out = self.streams.copy(slot)
        self._slots[turn] = (buffer, self.streams.record())
        return out

    def fetch(self, tensor: torch.Tensor) -> torch.Tensor:
        """Copy to the host, and wait."""
        return tensor if self.streams is None else tensor.cpu()

    def fetch_later(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Begin to copy to the host; returns what waits for the numbers and gives them."""
        return (lambda: tensor) if self.streams is None else self.streams.fetch(tensor)

    def send(self, host: torch.Tensor) -> torch.Tensor:
        """Copy what is little and not gathered."""
        return host if self.streams is None else self.streams.send(host)
