"""A tensor that grows by one row for each token or page."""

from __future__ import annotations

import torch


class Rows:
    """Rows along dimension 2 of ``[B, H, rows, width]``; capacity doubles, so that appending stays cheap.

    Spare capacity holds NaN, or the largest integer: a row that was never written must show, not pass for a number.
    """

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        batch, heads, width = shape
        self._unwritten = torch.nan if dtype.is_floating_point else torch.iinfo(dtype).max
        self._buffer = torch.full((batch, heads, 0, width), self._unwritten, dtype=dtype, device=device)
        self._length = 0

    @property
    def tensor(self) -> torch.Tensor:
        """The rows written so far, ``[B, H, rows, width]``; a view."""
        return self._buffer[:, :, : self._length]

    def append(self, rows: torch.Tensor) -> None:
        """Add ``[B, H, n, width]``."""
        length = self._length + rows.shape[2]
        if length > self._buffer.shape[2]:
            batch, heads, _, width = self._buffer.shape
            grown = self._buffer.new_full((batch, heads, max(length, 2 * self._length), width), self._unwritten)
            grown[:, :, : self._length] = self.tensor
            self._buffer = grown
        self._buffer[:, :, self._length : length] = rows
        self._length = length

    def crop(self, length: int) -> None:
        """Keep the first `length` rows, and release the memory of the others."""
        self._length = min(self._length, length)
        self._buffer = self.tensor.clone()

    def select(self, rows: torch.Tensor) -> None:
        """Make sequence i the former ``rows[i]``."""
        self._buffer = self.tensor.index_select(0, rows)

    def clone(self) -> Rows:
        """An independent copy."""
        copy = Rows((0, 0, 0), self._buffer.dtype, self._buffer.device)
        copy._buffer = self.tensor.clone()
        copy._length = self._length
        return copy
