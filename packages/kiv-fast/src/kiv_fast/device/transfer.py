"""From host to device: what leaves the host through a staging slot may be overwritten only once its copy is over.

On a CPU there is nothing to move. On another device, rows gathered on the host go through two pinned slots in turn, so
that the next gather overlaps the last copy. Streams and events are behind `CudaStreams`, in whose stead tests run
copies late.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch


class Beside(NamedTuple):
    """Copies on the second stream."""

    join: Callable[[], None]  # what the current stream is given from now on comes after them; the host goes on
    wait: Callable[[], None]  # blocks the host until they are over


class CudaStreams:
    """The parts of a CUDA device's runtime that a transfer needs.

    Written from the documentation; not run by this project's tests.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._second: Any = None

    def pinned(self, nbytes: int) -> torch.Tensor:
        """Make host memory, uint8 ``[nbytes]``: pinned, or ordinary with a warning."""
        try:
            with torch.cuda.device(self._device):
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
        return self.mark().synchronize

    def mark(self) -> Any:
        """Mark the point after all that the current stream was given so far."""
        event: Any = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    def copy_beside(self, parts: Sequence[tuple[torch.Tensor, torch.Tensor]], after: Any) -> Beside:
        """Begin to copy from the host, each into its target, on a second stream, once the point `after` is reached."""
        if self._second is None:
            self._second = torch.cuda.Stream(self._device)
        over: Any = torch.cuda.Event()
        with torch.cuda.stream(self._second):
            self._second.wait_event(after)
            for host, target in parts:
                target.copy_(host, non_blocking=True)
            over.record(self._second)
        return Beside(lambda: torch.cuda.current_stream(self._device).wait_event(over), over.synchronize)

    def rejoin(self) -> None:
        """Let what the current stream is given from now on come after all copies on the second one."""
        if self._second is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._second)


class Slots:
    """Pinned memory, a number of pieces in turn: each is filled again only after its last copy is over."""

    def __init__(self, streams: CudaStreams, count: int) -> None:
        self._streams = streams
        self._slots: list[tuple[torch.Tensor, Callable[[], None]] | None] = [None] * count
        self._turn = 0

    def fill(self, host: torch.Tensor) -> tuple[torch.Tensor, Callable[[Callable[[], None]], None]]:
        """Copy into the next slot; returns it, and what is to be told how the host waits for the copy out of it."""
        turn, self._turn = self._turn, (self._turn + 1) % len(self._slots)
        held, buffer = self._slots[turn], None
        if held is not None:
            buffer, wait = held
            wait()
        nbytes = host.numel() * host.element_size()
        if buffer is None or buffer.numel() < nbytes:
            buffer = self._streams.pinned(1 << max(0, nbytes - 1).bit_length())
        slot = buffer[:nbytes].view(host.dtype).view(host.shape)
        slot.copy_(host)

        def sent(wait: Callable[[], None]) -> None:
            self._slots[turn] = buffer, wait

        return slot, sent


class Transfer:
    """Moves rows to where the arithmetic is, and back.

    Parameters
    ----------
    streams : CudaStreams, optional
        None on a CPU: the rows are where they are needed, until the next gather.
    """

    def __init__(self, streams: CudaStreams | None = None) -> None:
        self.streams = streams
        self._slots = None if streams is None else Slots(streams, 2)

    def upload(self, host: torch.Tensor) -> torch.Tensor:
        """Copy through the next slot, which is filled again only after its last copy is over."""
        if self.streams is None or self._slots is None:
            return host
        slot, sent = self._slots.fill(host)
        out = self.streams.copy(slot)
        sent(self.streams.record())
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
