"""Buffers that every step uses again: fresh memory is slower than the arithmetic on it."""

from __future__ import annotations

import math

import torch
from kiv_reference.config import KIVConfig

from ..shape import Shape
from ..tuning import Tuning
from .ledger import Account, Holding

MADE = 8
"""One part in this many of temporary numbers is for what is made of estimates (`Estimates`)."""


class Scratch:
    """Named flat buffers, shared by all stores of a pool, growing to the largest use.

    What a name gave is overwritten by the next use of that name: nothing here outlives a block. The bytes are held,
    by `plan`, before they are used.
    """

    def __init__(self, account: Account) -> None:
        self.account, self._held = account, Holding(account)
        self._planned: dict[torch.device, int] = {}
        self._buffers: dict[tuple[str, torch.dtype, torch.device], torch.Tensor] = {}
        self._taken: dict[tuple[str, torch.dtype, torch.device], torch.Tensor] = {}  # the last views of them
        self.version = 0  # another one once a buffer lies elsewhere

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._held.bytes.device

    def planned(self, device: torch.device) -> int:
        """Return the bytes that are held for steps on one device."""
        return self._planned.get(device, 0)

    def plan(self, nbytes: int, device: torch.device) -> None:
        """Hold this many bytes for the steps of all stores on one device, or raise (SPEC 10.2)."""
        self._held.resize(self.nbytes - self.planned(device) + nbytes)
        self._planned[device] = nbytes

    def take(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, fill: int | None = None
    ) -> torch.Tensor:
        """Return memory of this shape as the last use left it; new memory is filled, or not initialised."""
        key = (name, dtype, device)
        taken = self._taken.get(key)
        if taken is not None and taken.shape == shape:
            return taken
        size = math.prod(shape)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < size:
            buffer = torch.empty(size, dtype=dtype, device=device)
            if fill is not None:
                buffer.fill_(fill)
            self._buffers[key] = buffer
            self.version += 1
        taken = self._taken[key] = buffer[:size].view(shape)
        return taken

    def drop(self) -> None:
        """Forget what the buffers have in them: a step that broke off may not have left them as it found them."""
        self._buffers.clear()
        self._taken.clear()
        self.version += 1

    def recount(self) -> None:
        """Set the account to what is held, after an interrupt."""
        self.account.used = [self.nbytes, 0, 0]

    def clear(self) -> None:
        """Free the buffers."""
        self.drop()
        self._held.resize(0)
        self._planned.clear()


def tile_pages(shape: Shape, config: KIVConfig, tuning: Tuning) -> int:
    """Return how many pages exact attention takes at once: a function of what is stored alone (SPEC 10.1)."""
    tokens = tuning.tile_tokens
    if shape.device.type != "cpu":
        tokens = min(tokens, tuning.tile_bytes // shape.token_bytes)
    return max(1, tokens // config.page_tokens)


def tile_bytes(shape: Shape, config: KIVConfig, tuning: Tuning, pages: int) -> int:
    """Count the bytes of a device's buffers for tiles of the first n pages: two on their way, one in order."""
    if shape.device.type == "cpu":
        return 0
    return 3 * min(pages, tile_pages(shape, config, tuning)) * config.page_tokens * shape.token_bytes


def heads_together(shape: Shape, config: KIVConfig, tuning: Tuning, members: int, pages: int) -> int:
    """Count the heads of blocks and sequences that are answered together, whatever the budgets (SPEC 10.1).

    `members` are those of a block and head, over `pages` cold pages.
    """
    limit = tuning.together(shape.device)
    heads = (limit - limit // MADE) // _head_bytes(shape, config, members, pages)
    return max(1, min(heads, _heads_gathered(shape, config, tuning)))


def temporary_bytes(shape: Shape, config: KIVConfig, tuning: Tuning, members: int, pages: int) -> int:
    """Count the bytes of what a step computes by torch's operations and forgets, which nothing books."""
    heads = min(heads_together(shape, config, tuning, members, pages), shape.batch * shape.heads)
    answered = heads * _head_bytes(shape, config, members, pages) * MADE // (MADE - 1)
    # Codes become numbers so many at a time; of each page there are queries times steps, and what becomes of these.
    coded = shape.heads * pages * config.page_tokens * min(config.index_channels, shape.key_width)
    codes = 2 * min(tuning.chunk_bytes, coded * shape.compute.itemsize)
    return answered + codes + 4 * heads * members * pages * shape.key_width * shape.compute.itemsize


def _head_bytes(shape: Shape, config: KIVConfig, members: int, pages: int) -> int:
    """Count the temporary numbers of a head, in bytes, but for what is made of its estimates."""
    assert config.retrieve_tokens is not None, "exact mode retrieves nothing"
    tokens, selected = pages * config.page_tokens, config.retrieve_tokens
    # Of each member: estimates; scores of twice as many candidates, twice, and of those that were there before; and of
    # what is attended logits and weights.
    hot = config.sink_tokens + config.hot_tokens + 2 * config.page_tokens
    numbers = tokens + 5 * min(config.candidate_tokens, tokens) + 2 * (hot + selected + pages)
    read = 2 * (hot + selected) * (shape.key_width + shape.value_width)
    return (members * numbers + read) * shape.compute.itemsize


def _heads_gathered(shape: Shape, config: KIVConfig, tuning: Tuning) -> int:
    """Count the heads whose selected values are not too much to be read at once."""
    assert config.retrieve_tokens is not None, "exact mode selects nothing"
    return tuning.chunk_bytes // (config.retrieve_tokens * shape.value_width * shape.compute.itemsize)


def step_bytes(shape: Shape, config: KIVConfig, tuning: Tuning) -> int:
    """Count the bytes of keys and values that such a store reads at once, in a decode step or for blocks together."""
    if config.retrieve_tokens is None:
        return 0
    heads = shape.heads
    if tuning.together(shape.device):
        blocks = -(-config.page_tokens // config.query_block_tokens) if config.prefill == "retrieve" else 1
        heads = max(heads, min(shape.batch * heads * blocks, _heads_gathered(shape, config, tuning)))
    chunk = tuning.chunk_bytes // (shape.key_width * shape.compute.itemsize)
    keys = min(heads * config.candidate_tokens, max(heads, chunk))
    numbers = heads * config.retrieve_tokens * shape.value_width + keys * shape.key_width
    return numbers * shape.dtype.itemsize
