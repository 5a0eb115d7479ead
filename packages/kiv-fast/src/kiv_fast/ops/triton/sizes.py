"""Shapes of a step: the buffers that it works in, and the numbers that its kernels are compiled for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from ..decoding import Decode

BINS = 2048
"""Group scores are counted by their highest eleven bits."""

LISTED = 4
"""As many times the candidates that a head may ask for are listed before they are chosen exactly; if more have nearly
the same score, all tokens are gone through instead."""

TOGETHER = 16
"""Pages whose pseudo-tokens are attended together: what a matrix product wants at least."""

PART = 128
"""Rows that one program puts into a cache at most."""

INT = torch.int32
LEAST = torch.iinfo(INT).min


def divided(n: int, size: int) -> int:
    """Return how many parts of a size n is made of."""
    return -(-n // size)


def power(n: int, least: int = 16, most: int = 1 << 30) -> int:
    """Return the power of two that is not below n, within limits."""
    return min(most, max(least, 1 << max(0, n - 1).bit_length()))


class Buffer(NamedTuple):
    """Memory that a step works in, and what is in it before the first one; None leaves it open."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    fill: int | None = None
    aside: bool = False  # for rows that the device is to keep (`device.kept.aside_bytes`)


class Sizes(NamedTuple):
    """What determines the shapes of a step, and what its kernels are compiled for."""

    batch: int  # B
    heads: int  # H
    groups: int  # G
    key_width: int  # D
    value_width: int  # DV
    dtype: torch.dtype  # of keys and values
    pages: int  # that there is room for (`page_room`)
    page_tokens: int  # P
    candidates: int  # C, where tokens are chosen less than all of them
    selected: int  # R, at most C
    recent: tuple[int, int]  # sinks and hot tokens that their buffers have room for
    retrieves: bool
    tail: bool
    keeps: bool  # rows on the device

    @property
    def tokens(self) -> int:
        """Cold tokens that there is room for."""
        return self.pages * self.page_tokens

    @property
    def most(self) -> int:
        """Candidates of a head that widens, where there is room for more."""
        return min(2 * self.candidates, self.tokens)

    @property
    def large(self) -> bool:
        """Whether products are of float32, or of many rows."""
        return self.dtype.itemsize > 2 or self.groups > 8

    @property
    def tile(self) -> int:
        """Tokens that are attended together: few where registers would spill, which on AMD are those of any product."""
        return 32 if self.large or torch.version.hip is not None else 64

    @property
    def block(self) -> int:
        """Tokens whose candidates one program reads: few where candidates are dense."""
        return 128 if self.tokens <= 1 << 16 else 512

    @property
    def parts(self) -> tuple[int, int, int, int]:
        """Where the parts of a softmax end: of sinks, hot tokens, selection or all cold tokens, pages."""
        sinks = divided(self.recent[0], self.tile)
        hot = sinks + divided(self.recent[1], self.tile)
        if not self.retrieves:
            cold = hot + divided(self.tokens, self.tile)
            return sinks, hot, cold, cold
        chosen = hot + divided(self.selected, self.tile)
        return sinks, hot, chosen, chosen + (divided(self.pages, TOGETHER) if self.tail else 0)

    def compiled(self, wide: bool) -> dict[str, Any]:
        """Return what kernels are compiled for; `wide` where 16-bit numbers are widened before every product."""
        return {
            "H": self.heads,
            "G": self.groups,
            "GP": power(self.groups, 8),
            "D": self.key_width,
            "BD": power(self.key_width, most=64),
            "DV": self.value_width,
            "BV": power(self.value_width, most=64),
            "P": self.page_tokens,
            "BLOCK": self.block,
            "BLOCKS": power(divided(self.tokens, self.block)),
            "LIST": power(LISTED * self.most),
            "BINS": BINS,
            "BP": TOGETHER,
            "BE": 32,
            "BK": 32 if self.groups <= 8 else 16,
            "WIDE": wide,
        }


@lru_cache(maxsize=64)
def buffers_of(sizes: Sizes) -> Mapping[str, Buffer]:
    """Return what a step works in, by name: the same for every layer of a model, until there are more pages."""
    grid, fixed = sizes.batch * sizes.heads, sizes.compiled(False)
    members, rows = (grid, sizes.groups), (grid, sizes.parts[3], 2 * fixed["GP"])
    found = {
        "part": Buffer((*rows, sizes.value_width), torch.float32),
        "largest": Buffer(rows, torch.float32),
        "total": Buffer(rows, torch.float32),
    }
    if sizes.retrieves:
        found |= {
            "estimate": Buffer((*members, sizes.tokens), torch.float32),
            "order": Buffer((grid, sizes.tokens), INT),
            "item": Buffer((grid, fixed["LIST"]), INT),
            "place": Buffer((grid, fixed["LIST"]), INT),
            "edge": Buffer((grid, 4, 2), INT),
            "offset": Buffer((grid, 2, fixed["BLOCKS"]), INT),
            "raw": Buffer((*members, sizes.most), torch.float32),
            "group": Buffer((grid, sizes.most), INT),
            "best": Buffer(members, INT),
            "fade": Buffer((grid, sizes.selected), torch.float32),
            # These a step leaves as it finds them.
            "top": Buffer(members, INT, LEAST),
            "seen": Buffer((grid, BINS), INT, 0),
            "count": Buffer((grid,), INT, 0),
            "done": Buffer((grid,), INT, 0),
        }
    if sizes.keeps:
        found["hit"] = Buffer((grid, 2), INT, 0, aside=True)
    if sizes.retrieves and sizes.keeps:
        found |= {
            "key_aside": Buffer((grid, sizes.most, sizes.key_width), sizes.dtype, aside=True),
            "value_aside": Buffer((grid, sizes.selected, sizes.value_width), sizes.dtype, aside=True),
            "key_slot": Buffer((grid, sizes.most), INT, aside=True),
            "value_slot": Buffer((grid, sizes.selected), INT, aside=True),
        }
    return found


@lru_cache(maxsize=64)
def bytes_of(sizes: Sizes) -> int:
    """Count the bytes of these, without those for rows that the device is to keep."""
    mine = [buffer for buffer in buffers_of(sizes).values() if not buffer.aside]
    return sum(math.prod(buffer.shape) * buffer.dtype.itemsize for buffer in mine)


def sizes_of(asked: Decode) -> Sizes:
    """Return the shapes of a step."""
    batch, heads_q, _, width = asked.query.shape
    heads, pages = asked.sinks[0].shape[1], asked.ids.shape[1]
    candidates = min(asked.candidates, pages * asked.page_tokens)
    return Sizes(
        batch,
        heads,
        heads_q // heads,
        width,
        asked.sinks[1].shape[3],
        asked.query.dtype,
        pages,
        asked.page_tokens,
        candidates,
        min(asked.selected, candidates),
        (asked.sinks[0].shape[2], asked.hot[0].shape[2]),
        asked.index is not None,
        asked.tail,
        asked.kept is not None,
    )
