"""How many tokens a store has, as kernels on the device know it."""

from __future__ import annotations

import torch

from .transfer import Transfer

Counts = tuple[int, int, int, int]
"""Sinks, hot tokens, the place of the first of these in the window, cold pages."""


class Lengths:
    """Counts in one place, which the launch that appends a token writes; the host sends them where that was not so.

    Attributes
    ----------
    words : int32 [4]
        On the device.
    """

    def __init__(self, transfer: Transfer, device: torch.device) -> None:
        self._transfer = transfer
        self.words = torch.zeros(4, dtype=torch.int32, device=device)
        self._told: Counts | None = None

    def tell(self, counts: Counts) -> None:
        """Send counts, if the device does not have them."""
        if counts != self._told:
            self._told = None
            self.words.copy_(self._transfer.send(torch.tensor(counts, dtype=torch.int32, device="cpu")))
            self._told = counts

    def written(self, counts: Counts | None) -> None:
        """Note what a launch has written; None before it, when nobody knows."""
        self._told = counts
