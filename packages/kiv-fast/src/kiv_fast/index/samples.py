"""The sampled queries of a store: where it looked lately, one position in 64 (SPEC 3.2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from kiv_reference.snapshot import UNSEEN

from ..device.transfer import Transfer
from ..shape import Shape

EVERY = 64
"""A position is sampled if the next one is a multiple of this."""

LAST = 16
"""Multiples before the boundary of a page that count."""


def room(samples: int) -> int:
    """Return how many samples a buffer for `samples` of them has room for: at most an eighth more."""
    step = 1 << max(0, samples.bit_length() - 4)
    return -(-samples // step) * step


class Samples:
    """For each multiple of 64 the largest magnitudes of the queries before it, in RAM.

    Attributes
    ----------
    count : int
        Multiples that an attend has reached.
    """

    def __init__(self, shape: Shape) -> None:
        self._shape, self.count = shape, 0
        self._coming: tuple[slice, Callable[[], torch.Tensor]] | None = None  # what is on its way into the buffer
        self._buffer = torch.empty(0, shape.batch, shape.heads, shape.key_width, dtype=shape.dtype, device="cpu")

    def bytes_at(self, length: int) -> int:
        """Count the bytes that a store of `length` tokens may take."""
        shape = self._shape
        return room(length // EVERY) * shape.batch * shape.heads * shape.key_width * shape.dtype.itemsize

    def take(self, query: torch.Tensor, length: int, valid: torch.Tensor | None, transfer: Transfer) -> None:
        """Note the queries ``[B, H, G, TQ, D]`` of the last tokens of `length`, which no attend has noted before.

        Parameters
        ----------
        valid : bool [B, TQ], or None if all are
        """
        want, first = length // EVERY, length - query.shape[3]
        begin = first // EVERY
        at = slice(EVERY * begin + EVERY - 1 - first, None, EVERY)
        largest = query[:, :, :, at].abs().amax(dim=2)  # [B, H, n, D]
        if valid is not None:
            largest = largest.masked_fill(~valid[:, None, at, None], UNSEEN)
        buffer = self._settled()
        if buffer.shape[0] < want:
            buffer = buffer.new_empty(room(want), *buffer.shape[1:])
            buffer[: self.count] = self._buffer[: self.count]
        buffer[self.count : begin] = UNSEEN
        self._buffer, self.count = buffer, want
        self._coming = slice(begin, want), transfer.fetch_later(largest.to(buffer.dtype))

    def _settled(self) -> torch.Tensor:
        """Return the buffer, with what was on its way."""
        if self._coming is not None:
            at, numbers = self._coming
            self._buffer[at] = numbers().permute(2, 0, 1, 3)
            self._coming = None
        return self._buffer

    def whole(self) -> torch.Tensor:
        """Copy all, ``[B, H, n, D]``."""
        return self._settled()[: self.count].permute(1, 2, 0, 3).contiguous()

    @classmethod
    def restored(cls, shape: Shape, sampled: torch.Tensor) -> Samples:
        """Make them of what `whole` has given."""
        made = cls(shape)
        made.count = sampled.shape[2]
        made._buffer = made._buffer.new_empty(room(made.count), *made._buffer.shape[1:])
        made._buffer[: made.count] = sampled.permute(2, 0, 1, 3)
        return made

    def weights(self, row: int, boundaries: list[int]) -> torch.Tensor:
        """Return w of pages that become cold at these boundaries, ``[n, H, D]`` in the dtype of computation, in RAM."""
        found = {last: self._largest(row, last) for last in {boundary // EVERY for boundary in boundaries}}
        return torch.stack([found[boundary // EVERY] for boundary in boundaries])

    def _largest(self, row: int, last: int) -> torch.Tensor:
        part = self._settled()[max(0, last - LAST) : min(last, self.count), row].to(self._shape.compute)
        if not part.shape[0]:
            return part.new_ones(part.shape[1:])
        largest = part.amax(dim=0)
        return torch.where(largest < 0, 1.0, largest)

    def cropped(self, length: int) -> Samples:
        """Keep those of the first `length` tokens, as another object."""
        copy = Samples(self._shape)
        copy.count = min(self.count, length // EVERY)
        copy._buffer = self._settled()
        if self._buffer.shape[0] > room(length // EVERY):
            copy._buffer = self._buffer.new_empty(room(copy.count), *self._buffer.shape[1:])
            copy._buffer[: copy.count] = self._buffer[: copy.count]
        return copy

    def select(self, rows: torch.Tensor) -> Samples:
        """Make a copy whose sequence i is sequence ``rows[i]``, int64 in RAM."""
        copy = Samples(self._shape._replace(batch=rows.numel()))
        copy.count, copy._buffer = self.count, self._settled().index_select(1, rows)
        return copy
