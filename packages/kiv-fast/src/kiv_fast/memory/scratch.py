"""Buffers that every step uses again: fresh memory is slower than the arithmetic on it."""

from __future__ import annotations

import math

import torch
from kiv_reference.config import KIVConfig

from ..shape import Shape
from ..tuning import Tuning
from .ledger import Account


class Scratch:
    """Named flat buffers, shared by all stores of a pool, growing to the largest use.

    What a name gave is overwritten by the next use of that name: nothing here outlives a block. The bytes are booked,
    by `plan`, before they are used.
    """

    def __init__(self, ledger: Account) -> None:
        self.account = self._ledger = ledger
        self._buffers: dict[tuple[str, torch.dtype, torch.device], torch.Tensor] = {}
        self._planned = self._lent = 0

    @property
    def nbytes(self) -> int:
        """Bytes booked."""
        return self._planned + self._lent

    def lend(self, nbytes: int) -> bool:
        """Book room for what one block alone uses, to save time, instead of what was lent before; whether there is."""
        self._ledger.give(device=self._lent)
        self._lent = 0
        room = self._ledger.room(0)
        if room is not None and room < nbytes:
            return False
        self._ledger.take(device=nbytes)
        self._lent = nbytes
        return True

    def plan(self, nbytes: int) -> int:
        """Book room for a store whose steps need so much (SPEC 10.2); returns what was planned before."""
        self.lend(0)
        before = self._planned
        if nbytes > before:
            self._ledger.take(device=nbytes - before)
            self._planned = nbytes
        return before

    def unplan(self, before: int) -> None:
        """The call that planned last was refused."""
        self._ledger.give(device=self._planned - before)
        self._planned = before

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Uninitialised memory of this shape."""
        key = (name, dtype, device)
        size = math.prod(shape)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < size:
            buffer = torch.empty(size, dtype=dtype, device=device)
            self._buffers[key] = buffer
        return buffer[:size].view(shape)

    def convert(self, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`tensor` in another dtype, in the buffer of that name; itself if it has the dtype."""
        if tensor.dtype == dtype:
            return tensor
        return self.take(name, tuple(tensor.shape), dtype, tensor.device).copy_(tensor)

    def recount(self) -> None:
        """After an interrupt: what is booked is what is planned and lent."""
        self.account.used = [self.nbytes, 0, 0]

    def clear(self) -> None:
        """Free the buffers."""
        self._buffers.clear()
        self._ledger.give(device=self.nbytes)
        self._planned = self._lent = 0


def chunk_tokens(shape: Shape, tuning: Tuning) -> int:
    """Candidates of each head whose keys are in the works at a time."""
    return max(1, tuning.chunk_bytes // (shape.heads * shape.key_width * shape.compute.itemsize))


def step_bytes(shape: Shape, config: KIVConfig, tuning: Tuning, pages: int) -> int:
    """Bytes of the buffers that a decode step of such a store, with so many cold pages, fills."""
    if config.retrieve_tokens is None:
        return 0
    tokens = min(config.candidate_tokens, chunk_tokens(shape, tuning))
    key, value = shape.key_width, shape.value_width
    gathered = config.retrieve_tokens * value + tokens * key
    return shape.heads * gathered * shape.dtype.itemsize
