"""A tensor that grows by tokens or pages."""

from __future__ import annotations

import torch


class Growing:
    """A tensor ``[B, H, n, width]`` that grows along n; capacity doubles, so that appending stays cheap.

    Spare capacity holds NaN, or the largest integer: what was never written must show, not pass for a number.
    """

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        batch, heads, width = shape
        self._unwritten = torch.nan if dtype.is_floating_point else torch.iinfo(dtype).max
        self.buffer = torch.full((batch, heads, 0, width), self._unwritten, dtype=dtype, device=device)
        self._length = 0

    @property
    def tensor(self) -> torch.Tensor:
        """What was written so far, ``[B, H, n, width]``; a view."""
        return self.buffer[:, :, : self._length]

    def append(self, more: torch.Tensor) -> None:
        """Add ``[B, H, n, width]``."""
        length = self._length + more.shape[2]
        if length > self.buffer.shape[2]:
            batch, heads, _, width = self.buffer.shape
            grown = self.buffer.new_full((batch, heads, max(length, 2 * self._length), width), self._unwritten)
            grown[:, :, : self._length] = self.tensor
            self.buffer = grown
        self.buffer[:, :, self._length : length] = more
        self._length = length

    def crop(self, length: int) -> None:
        """Keep the first `length` along n, and release the memory of the others."""
        self._length = min(self._length, length)
        self.buffer = self.tensor.clone()

    def select(self, rows: torch.Tensor) -> None:
        """Make sequence i the former ``rows[i]``."""
        self.buffer = self.tensor.index_select(0, rows)

    def clone(self) -> Growing:
        """Return an independent copy."""
        copy = Growing((0, 0, 0), self.buffer.dtype, self.buffer.device)
        copy.buffer = self.tensor.clone()
        copy._length = self._length
        return copy
