"""Buffers that every step uses again: fresh memory is slower than the arithmetic on it."""

from __future__ import annotations

import math

import torch
from kiv_reference.config import KIVConfig

from ..shape import Shape
from ..tuning import Tuning
from .ledger import Account, Holding


class Scratch:
    """Named flat buffers, shared by all stores of a pool, growing to the largest use.

    What a name gave is overwritten by the next use of that name: nothing here outlives a block. The bytes are held,
    by `plan`, before they are used.
    """

    def __init__(self, account: Account) -> None:
        self.account, self._held = account, Holding(account)
        self._buffers: dict[tuple[str, torch.dtype, torch.device], torch.Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._held.bytes.device

    def plan(self, nbytes: int) -> None:
        """Hold this many bytes for the steps of all stores, or raise (SPEC 10.2)."""
        self._held.resize(nbytes)

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
        """Set the account to what is held, after an interrupt."""
        self.account.used = [self.nbytes, 0, 0]

    def clear(self) -> None:
        """Free the buffers."""
        self._buffers.clear()
        self.plan(0)


def chunk_tokens(shape: Shape, tuning: Tuning) -> int:
    """Return of how many candidates of each head the keys are in the works at a time."""
    return max(1, tuning.chunk_bytes // (shape.heads * shape.key_width * shape.compute.itemsize))


def step_bytes(shape: Shape, config: KIVConfig, tuning: Tuning, pages: int) -> int:
    """Bytes of the buffers that a decode step of such a store, with so many cold pages, fills."""
    if config.retrieve_tokens is None:
        return 0
    tokens = min(config.candidate_tokens, chunk_tokens(shape, tuning))
    key, value = shape.key_width, shape.value_width
    gathered = config.retrieve_tokens * value + tokens * key
    return shape.heads * gathered * shape.dtype.itemsize
