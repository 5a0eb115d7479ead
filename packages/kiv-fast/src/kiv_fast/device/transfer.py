"""From host to device: what leaves the host through a staging slot may be overwritten only once its copy is over.

On a CPU there is nothing to move. On another device, rows gathered on the host go through two pinned slots in turn, so
that the next gather overlaps the last copy. Streams and events are behind `Streams`, so that tests can run copies late.
"""

from __future__ import annotations

import warnings
from typing import Any, Protocol

import torch


class Event(Protocol):
    """A point in a stream of work."""

    def wait(self) -> None:
        """Block the host until the work before it is done."""
        ...


class Streams(Protocol):
    """The parts of a device's runtime that a transfer needs."""

    def pinned(self, nbytes: int) -> torch.Tensor:
        """Host memory, uint8 ``[nbytes]``, pinned if the system allows."""
        ...

    def copy(self, host: torch.Tensor) -> torch.Tensor:
        """Begin to copy to the device."""
        ...

    def send(self, host: torch.Tensor) -> torch.Tensor:
        """Ordinary memory on the device; the runtime has taken what it needs of it when this returns."""
        ...

    def record(self) -> Event:
        """The point after all copies begun so far."""
        ...


class NullTransfer:
    """For stores on the CPU: the rows are where they are needed, until the next gather."""

    def upload(self, host: torch.Tensor) -> torch.Tensor:
        """Return `host` itself."""
        return host

    def fetch(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return `tensor` itself."""
        return tensor

    def send(self, host: torch.Tensor) -> torch.Tensor:
        """Return `host` itself."""
        return host


class StagedTransfer:
    """Two slots in turn; a slot is filled again only after its last copy is over."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._slots: list[tuple[torch.Tensor, Event] | None] = [None, None]
        self._turn = 0

    def upload(self, host: torch.Tensor) -> torch.Tensor:
        """Copy through the next slot."""
        turn, self._turn = self._turn, 1 - self._turn
        held = self._slots[turn]
        buffer = None
        if held is not None:
            buffer, event = held
            event.wait()
        nbytes = host.numel() * host.element_size()
        if buffer is None or buffer.numel() < nbytes:
            buffer = self._streams.pinned(1 << max(0, nbytes - 1).bit_length())
        slot = buffer[:nbytes].view(host.dtype).view(host.shape)
        slot.copy_(host)
        out = self._streams.copy(slot)
        self._slots[turn] = (buffer, self._streams.record())
        return out

    def fetch(self, tensor: torch.Tensor) -> torch.Tensor:
        """Copy, and wait."""
        return tensor.cpu()

    def send(self, host: torch.Tensor) -> torch.Tensor:
        """Copy."""
        return self._streams.send(host)


class CudaStreams:
    """The streams of a CUDA device. Written from the documentation; not run by this project's tests."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def pinned(self, nbytes: int) -> torch.Tensor:
        """Pinned memory, or ordinary memory with a warning."""
        try:
            return torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=True)
        except RuntimeError as error:
            warnings.warn(f"host memory was not pinned ({error}): copies will be slow", RuntimeWarning, stacklevel=2)
            return torch.empty(nbytes, dtype=torch.uint8, device="cpu")

    def copy(self, host: torch.Tensor) -> torch.Tensor:
        """Asynchronous on the current stream, where the arithmetic that follows waits for it."""
        return host.to(self._device, non_blocking=True)

    def send(self, host: torch.Tensor) -> torch.Tensor:
        """As `copy`; from memory that is not pinned, the driver takes the numbers before it returns."""
        return host.to(self._device, non_blocking=True)

    def record(self) -> Event:
        """An event on the current stream."""
        event: Any = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return _CudaEvent(event)


class _CudaEvent:
    def __init__(self, event: Any) -> None:
        self._event = event

    def wait(self) -> None:
        self._event.synchronize()


Transfer = NullTransfer | StagedTransfer
"""Moves gathered rows to where the arithmetic is."""


def transfer_to(device: torch.device) -> Transfer:
    """The way from the host to `device`."""
    return StagedTransfer(CudaStreams(device)) if device.type == "cuda" else NullTransfer()
