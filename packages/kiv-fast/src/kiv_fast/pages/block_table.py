"""Which page is whose: reference-counted ids and the page table of one sequence. Integers only, no tensor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .integers import Integers


class IdPool:
    """Reference-counted ids; the lowest free ones are taken first, so that tables stay contiguous."""

    def __init__(self) -> None:
        self._holders = Integers()  # up to the highest id in use

    @property
    def used(self) -> int:
        """Ids that somebody holds."""
        return int(np.count_nonzero(self._holders.array))

    def take(self, n: int) -> list[int]:
        """Take `n` ids, each with one holder."""
        ids = np.flatnonzero(self._holders.array == 0)[:n].tolist()
        first, more = len(self._holders), n - len(ids)
        self._holders.array[ids] = 1
        self._holders.resize(first + more, 1)
        return [*ids, *range(first, first + more)]

    def share(self, ids: Iterable[int]) -> None:
        """Add a holder to each of ids that are in use."""
        self._add(ids, 1)

    def drop(self, ids: Iterable[int]) -> list[int]:
        """Take a holder from each of ids that are in use; returns those that nobody holds any more."""
        at = self._add(ids, -1)
        freed = at[self._holders.array[at] == 0].tolist()
        self._holders.strip(0)  # what comes back from the top is as if it had never been taken
        return freed

    def _add(self, ids: Iterable[int], holders: int) -> NDArray[np.int64]:
        at = np.fromiter(ids, np.int64)
        held = self._holders.array[at[at < len(self._holders)]]
        assert np.count_nonzero(held) == len(at), "a free id"
        self._holders.array[at] += holders
        return at


@dataclass
class BlockTable:
    """The cold pages of one sequence, in order of position.

    Attributes
    ----------
    pages : Integers
        Page ids; page j of the sequence is ``pages[j]``.
    counts : Integers
        Valid tokens of each page.
    whole : int
        Leading pages with consecutive ids.
    finite : int
        Leading pages whose mean values are all numbers.
    padded : bool
        Whether a page has an invalid token.
    """

    pages: Integers = field(default_factory=Integers)
    counts: Integers = field(default_factory=Integers)
    whole: int = 0
    finite: int = 0
    padded: bool = False

    def extend(self, pages: list[int], counts: list[int], page_tokens: int, finite: bool) -> None:
        """Add pages at the end, `finite` if their mean values are all numbers."""
        held, last = len(self.pages), self.pages[-1] if self.pages else pages[0] - 1
        if self.whole == held:
            self.whole += next((n for n, page in enumerate(pages) if page != last + 1 + n), len(pages))
        if self.finite == held and finite:
            self.finite += len(pages)
        self.pages.extend(pages)
        self.counts.extend(counts)
        self.padded = self.padded or min(counts) < page_tokens

    def cut(self, pages: int, page_tokens: int) -> list[int]:
        """Keep the first `pages` pages; returns the ids of the others."""
        gone = self.pages.tolist(pages)
        self.pages.resize(pages)
        self.counts.resize(pages)
        self.whole, self.finite = min(self.whole, pages), min(self.finite, pages)
        self.padded = self.padded and bool((self.counts.array < page_tokens).any())
        return gone

    def tokens(self, pages: int) -> int:
        """Valid tokens of the first `pages` pages."""
        return int(self.counts.array[:pages].sum())

    def copy(self) -> BlockTable:
        """Copy the integers to places of their own."""
        return BlockTable(Integers(self.pages.array), Integers(self.counts.array), self.whole, self.finite, self.padded)
