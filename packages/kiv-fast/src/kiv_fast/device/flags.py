"""What a device finds that the host must know, and when the host looks: without a wait where that is possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch

from ..memory.pinning import SlabPinning
from .gather import Gather


class Flags:
    """A few words that arithmetic on a device sets to 1.

    They are in host memory, which the device writes by itself, if it reads host memory so (`Gather`); else on the
    device, from where the host copies them.

    Parameters
    ----------
    count : int
    gather : Gather
    pinning : SlabPinning, optional
        What knows where a device sees host memory.
    device : torch.device
        Where the arithmetic is.

    Attributes
    ----------
    words : int32 [count]
        As the device sees them.
    late : bool
        Whether the device goes on while the host does: what it finds is known later.
    """

    def __init__(self, count: int, gather: Gather, pinning: SlabPinning | None, device: torch.device) -> None:
        self._gather, self.late = gather, gather.transfer.streams is not None
        self._host: torch.Tensor | None = None
        self._over: Callable[[], None] | None = None
        streams = gather.transfer.streams
        if streams is None:
            self._host = self.words = torch.zeros(count, dtype=torch.int32, device=device)
            return
        host = streams.pinned(4 * count).view(torch.int32).zero_()
        seen = gather.pinned(host, pinning)
        if seen is not None:
            self._host = host
        self.words = torch.zeros(count, dtype=torch.int32, device=device) if seen is None else seen

    def note(self) -> None:
        """Mark the point until which the device must have come before the words are read."""
        streams = self._gather.transfer.streams
        self._over = None if streams is None else streams.record()

    def take(self) -> list[bool]:
        """Return which words are set, and set them back, once the device has come to the last `note`."""
        if self._over is not None:
            self._over()
            self._over = None
        words = self._gather.transfer.fetch(self.words) if self._host is None else self._host
        found = cast("list[int]", words.tolist())
        if any(found):
            (self.words if self._host is None else self._host).zero_()
        return [word != 0 for word in found]
