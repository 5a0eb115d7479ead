"""Which tokens of a store are valid: a flag for each, kept from the first that is not."""

from __future__ import annotations

import sys

import torch

LEAST_FLAGS = 64
"""Of each sequence that the first buffer has room for."""


class Validity:
    """Flags of all sequences, on the device; none while all tokens are valid. The buffer doubles when it is full."""

    def __init__(self, batch: int, device: torch.device) -> None:
        self._batch, self._device = batch, device
        self._flags: torch.Tensor | None = None  # bool [B, capacity]

    @property
    def nbytes(self) -> int:
        """Bytes of the buffer."""
        return 0 if self._flags is None else self._flags.numel()

    @property
    def whole(self) -> bool:
        """Whether every token is valid."""
        return self._flags is None

    @property
    def room(self) -> int:
        """Count the tokens that need no other buffer; all valid ones need none."""
        return sys.maxsize if self._flags is None else self._flags.shape[1]

    def bytes_with(self, tokens: int, padded: bool) -> int:
        """Count the bytes of the buffer for `tokens` in all, `padded` if some of those to come are invalid."""
        return self._batch * self._capacity(tokens) if padded or not self.whole else 0

    def _capacity(self, tokens: int) -> int:
        held = 0 if self._flags is None else self._flags.shape[1]
        return held if held >= tokens else max(LEAST_FLAGS, tokens, 2 * held)

    def part(self, start: int, stop: int) -> torch.Tensor | None:
        """View the flags of positions, bool ``[B, stop - start]``; None if all tokens of the store are valid."""
        return None if self._flags is None else self._flags[:, start:stop]

    def row(self, row: int, start: int, stop: int) -> torch.Tensor | None:
        """View the flags of one sequence, bool ``[stop - start]``; None if all these are valid."""
        if self._flags is None:
            return None
        flags = self._flags[row, start:stop]
        return None if bool(flags.all()) else flags

    def extended(self, valid: torch.Tensor | None, length: int, n: int) -> Validity:
        """Add flags bool ``[B, n]`` after the first `length`, None if they are all valid.

        Another object, perhaps of the same buffer, so that this one still serves for the first `length`.
        """
        if valid is None and self._flags is None:
            return self
        copy, old, capacity = Validity(self._batch, self._device), self._flags, self._capacity(length + n)
        flags = old
        if flags is None or flags.shape[1] < capacity:
            flags = torch.ones(self._batch, capacity, dtype=torch.bool, device=self._device)
            if old is not None:
                flags[:, :length] = old[:, :length]
        flags[:, length : length + n] = True if valid is None else valid
        copy._flags = flags
        return copy

    def cropped(self, length: int) -> Validity:
        """Keep the flags of the first `length` tokens, as another object."""
        copy = Validity(self._batch, self._device)
        if self._flags is not None and not bool(self._flags[:, :length].all()):
            copy._flags = self._flags[:, :length].clone()
        return copy

    def select(self, rows: torch.Tensor) -> Validity:
        """Make a copy whose sequence i is sequence ``rows[i]``."""
        copy = Validity(rows.numel(), self._device)
        copy._flags = None if self._flags is None else self._flags.index_select(0, rows)
        return copy
