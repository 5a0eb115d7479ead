"""Checksums of saved bytes: XXH3, 64 bits, seeded by the place, so that right bytes in a wrong place fail."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import xxhash

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK_TOKENS = 16
"""Tokens of a head that have one checksum, where pages are made of as many."""

_digest = xxhash.xxh3_64_intdigest


def block_tokens(page_tokens: int) -> int:
    """Return how many tokens of a head have one checksum."""
    return page_tokens if page_tokens % BLOCK_TOKENS else BLOCK_TOKENS


def seed_of(segment: str, tensor: str) -> int:
    """Return the seed of a tensor's first block; that of its block b is b more, modulo 2^64."""
    return _digest(f"{segment}/{tensor}".encode("ascii"))


def checksum(data: bytes | memoryview, seed: int = 0) -> int:
    """Return the checksum of bytes."""
    return _digest(data, seed)


def block_sums(
    data: NDArray[np.uint8], at: NDArray[np.int64], size: int, seed: int, blocks: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """Return the checksums of blocks, by their numbers in their tensor, of `size` bytes from `at[i]` of `data` on."""
    view = data.data
    seeds: NDArray[np.uint64] = np.add(blocks.astype(np.uint64), np.uint64(seed))  # arrays wrap around
    places = zip(cast("list[int]", at.tolist()), cast("list[int]", seeds.tolist()), strict=True)
    return np.fromiter((_digest(view[start : start + size], own) for start, own in places), np.uint64, len(at))


def written(number: int) -> str:
    """Return a checksum as the manifest has it."""
    return f"{number:016x}"
