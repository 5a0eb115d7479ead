"""Which page is whose: reference-counted ids and the page table of one sequence. Integers only, no tensor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int32]
"""What is noted about pages: a few bytes for each, copied to grow as seldom as pages leave the hot window."""


def integers(numbers: Sequence[int] = ()) -> Integers:
    """Make what is noted of some pages."""
    return np.array(numbers, np.int32)


def extended(numbers: Integers, more: Sequence[int]) -> Integers:
    """Copy numbers, and others behind them."""
    block = np.empty(len(numbers) + len(more), np.int32)
    block[: len(numbers)], block[len(numbers) :] = numbers, more
    return block


def grown(numbers: Integers, count: int, empty: int) -> Integers:
    """Have at least `count` of them, `empty` at the end."""
    return extended(numbers, [empty] * (count - len(numbers)))


def stripped(numbers: Integers, empty: int) -> Integers:
    """Drop what is `empty` at the end."""
    if len(numbers) and numbers.item(-1) != empty:
        return numbers
    kept = np.flatnonzero(numbers != empty)
    return np.array(numbers[: int(kept[-1]) + 1 if kept.size else 0], np.int32)


class IdPool:
    """Reference-counted ids; the lowest free ones are taken first, so that tables stay contiguous."""

    def __init__(self) -> None:
        self._holders = integers()  # up to the highest id in use

    def __len__(self) -> int:
        """Count the ids up to the highest in use."""
        return len(self._holders)

    @property
    def used(self) -> int:
        """Ids that somebody holds."""
        return int(np.count_nonzero(self._holders))

    def take(self, n: int) -> list[int]:
        """Take `n` ids, each with one holder."""
        ids = np.flatnonzero(self._holders == 0)[:n].tolist()
        first, more = len(self._holders), n - len(ids)
        self._holders = grown(self._holders, first + more, 1)
        self._holders[ids] = 1
        return [*ids, *range(first, first + more)]

    def share(self, ids: Iterable[int]) -> None:
        """Add a holder to each of ids that are in use."""
        self._add(ids, 1)

    def drop(self, ids: Iterable[int]) -> list[int]:
        """Take a holder from each of ids that are in use; returns those that nobody holds any more."""
        at = self._add(ids, -1)
        freed = at[self._holders[at] == 0].tolist()
        self._holders = stripped(self._holders, 0)  # what comes back from the top is as if it had never been taken
        return freed

    def _add(self, ids: Iterable[int], holders: int) -> NDArray[np.int64]:
        at = np.fromiter(ids, np.int64)
        held = self._holders[at[at < len(self._holders)]]
        assert np.count_nonzero(held) == len(at), "a free id"
        self._holders[at] += holders
        return at


@dataclass
class BlockTable:
    """The cold pages of one sequence, in order of position; or for a while those of several (`joined`).

    Attributes
    ----------
    pages, counts : int32 [N]
        Page ids, page j of the sequence at j, and the valid tokens of each.
    whole : int
        Leading pages with consecutive ids.
    finite : int
        Leading pages whose mean values are all numbers.
    padded : bool
        Whether a page has an invalid token.
    sequences : int
        How many have as many pages here, one behind the other. Only the table of one changes.
    """

    pages: Integers = field(default_factory=integers)
    counts: Integers = field(default_factory=integers)
    whole: int = 0
    finite: int = 0
    padded: bool = False
    sequences: int = 1

    @classmethod
    def joined(cls, tables: Sequence[BlockTable], pages: int) -> BlockTable:
        """Put the first `pages` pages of several sequences, none of them padded, behind one another."""
        if len(tables) == 1:
            return tables[0]
        ids = np.concatenate([table.pages[:pages] for table in tables])
        counts = np.concatenate([table.counts[:pages] for table in tables])
        finite = pages if all(table.finite >= pages for table in tables) else 0
        return cls(ids, counts, 0, finite, False, len(tables))

    def extend(self, pages: list[int], counts: list[int], page_tokens: int, finite: bool) -> None:
        """Add pages at the end, `finite` if their mean values are all numbers."""
        held = len(self.pages)
        last = self.pages.item(-1) if held else pages[0] - 1
        if self.whole == held:
            self.whole += next((n for n, page in enumerate(pages) if page != last + 1 + n), len(pages))
        if self.finite == held and finite:
            self.finite += len(pages)
        self.pages, self.counts = extended(self.pages, pages), extended(self.counts, counts)
        self.padded = self.padded or min(counts) < page_tokens

    def cut(self, pages: int, page_tokens: int) -> list[int]:
        """Keep the first `pages` pages; returns the ids of the others."""
        gone = self.pages[pages:].tolist()
        self.pages, self.counts = (np.array(part[:pages], np.int32) for part in (self.pages, self.counts))
        self.whole, self.finite = min(self.whole, pages), min(self.finite, pages)
        self.padded = self.padded and bool((self.counts < page_tokens).any())
        return gone

    def tokens(self, pages: int) -> int:
        """Count the valid tokens of the first `pages` pages."""
        return int(self.counts[:pages].sum()) if pages else 0

    def copy(self) -> BlockTable:
        """Copy the integers to places of their own."""
        return replace(self, pages=self.pages.copy(), counts=self.counts.copy())
