"""Caches of rows on a device, simulated: which of the rows that a step wants does one hold?

A step looks up all its rows at once, and what it missed is put in afterwards, as on a device that does not wait for its
host: a hit is a row that was held before the step. Least recently used goes first; of what one step used the later
position counts as the more recent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Rows = NDArray[np.int32]
    """Positions that a step reads, ascending, each once."""

GOLDEN = 2654435769
"""2³² ÷ the golden ratio: multiplied by it, modulo 2³², neighbours fall far apart (Knuth, volume 3, 6.4)."""

RECENT_STEPS = 4


@dataclass(frozen=True)
class Policy:
    """A kind of cache.

    Attributes
    ----------
    name : str
    block_tokens : int
        Consecutive tokens that are held, fetched and dropped together.
    ways : int, or None
        Blocks of a set, the set a hash of the block's number; None is one set of everything.
    """

    name: str
    block_tokens: int = 1
    ways: int | None = None


class Outcome(NamedTuple):
    """What a cache of each of several sizes did.

    Attributes
    ----------
    hits : int64 [steps, sizes]
        Rows wanted that were held.
    fetched : int64 [steps, sizes]
        Rows brought, those included that only share a block with one that was wanted.
    """

    hits: NDArray[np.int64]
    fetched: NDArray[np.int64]


def simulate(policy: Policy, reads: Sequence[Rows], sizes: Sequence[int]) -> Outcome:
    """Let caches of `sizes` rows, empty at first, serve the steps of one KV head."""
    hits, fetched = (np.zeros((len(reads), len(sizes)), np.int64) for _ in range(2))
    capacities = [size // policy.block_tokens for size in sizes]
    for step, (order, blocks, counts) in enumerate(_by_recency(reads, policy.block_tokens)):
        inside = np.zeros(int(max(order.max(initial=0), blocks.max(initial=0))) + 1, dtype=bool)
        for i, capacity in enumerate(capacities):
            inside[order] = _held(order, capacity, policy.ways)
            found = inside[blocks]
            hits[step, i] = counts[found].sum()
            fetched[step, i] = np.count_nonzero(~found) * policy.block_tokens
    return Outcome(hits, fetched)


def _by_recency(reads: Sequence[Rows], block_tokens: int) -> Iterator[tuple[Rows, Rows, NDArray[np.int64]]]:
    """Yield for each step the blocks used before, latest first; those that it wants; and how many rows of each."""
    order = np.empty(0, np.int32)
    used = np.zeros(1 + max((int(rows[-1]) for rows in reads if rows.size), default=0) // block_tokens, dtype=bool)
    for rows in reads:
        block = rows // block_tokens
        first = np.flatnonzero(np.diff(block, prepend=-1))
        wanted = block[first]
        yield order, wanted, np.diff(first, append=block.size)
        used[wanted] = True
        order = np.concatenate([wanted[::-1], order[~used[order]]])
        used[wanted] = False


def _held(order: Rows, capacity: int, ways: int | None) -> NDArray[np.bool_]:
    """Tell which of the blocks of `order`, the latest first, a cache of `capacity` blocks holds."""
    if ways is None:
        return np.arange(order.size) < capacity
    sets = max(1, capacity // ways)
    assert sets <= 2**16, "sets are numbered in 16 bits, which are sorted without comparisons"
    chosen = (((order.astype(np.uint64) * GOLDEN) % 2**32 * sets) >> np.uint64(32)).astype(np.uint16)
    by_set = np.argsort(chosen, kind="stable")
    at = np.arange(order.size)
    together = chosen[by_set]
    begins = at * (np.diff(together, prepend=together[:1]) != 0)
    held = np.empty(order.size, dtype=bool)
    held[by_set] = at - np.maximum.accumulate(begins) < ways
    return held


class Origin(NamedTuple):
    """Of the rows that each step wants, how many earlier steps wanted: int64 [steps] each."""

    before: NDArray[np.int64]
    recent: NDArray[np.int64]
    ever: NDArray[np.int64]


def origins(reads: Sequence[Rows]) -> Origin:
    """Count rows that the step before wanted, that one of the last RECENT_STEPS did, and that any did."""
    counts = np.zeros((3, len(reads)), np.int64)
    last = np.full(1 + max((int(rows[-1]) for rows in reads if rows.size), default=0), -1)
    for step, rows in enumerate(reads):
        then = last[rows]
        seen = then >= 0
        counts[:, step] = [np.count_nonzero(seen & (step - then <= back)) for back in (1, RECENT_STEPS, step + 1)]
        last[rows] = step
    return Origin(*counts)
