"""Which page is whose: reference-counted ids and the page table of one sequence. Integers only, no tensor."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

from .integers import Integers

SLACK = 256
"""Ids of which the memory need not be returned."""


class IdPool:
    """Reference-counted ids; the lowest free ones are taken first, so that tables stay contiguous.

    Parameters
    ----------
    typecode : of an array that counts as many holders as an id may have
    """

    def __init__(self, typecode: str = "I") -> None:
        self._holders = array(typecode)  # up to the highest id in use
        self._used = 0

    @property
    def used(self) -> int:
        """Ids that somebody holds."""
        return self._used

    def take(self, n: int) -> list[int]:
        """`n` ids, each with one holder."""
        holders, ids, start = self._holders, list[int](), 0
        for _ in range(min(n, len(holders) - self._used)):
            start = holders.index(0, start)
            holders[start] = 1
            ids.append(start)
        self._used += n
        first, more = len(holders), n - len(ids)
        holders.extend(array(holders.typecode, [1]) * more)
        ids.extend(range(first, first + more))
        return ids

    def share(self, ids: Iterable[int]) -> None:
        """One more holder for each."""
        holders = self._holders
        for i in ids:
            assert any(holders[i : i + 1]), "a free id was shared"
            holders[i] += 1

    def drop(self, ids: Iterable[int]) -> list[int]:
        """One holder less for each; returns the ids that nobody holds any more."""
        freed: list[int] = []
        holders = self._holders
        for i in ids:
            assert any(holders[i : i + 1]), "a free id was dropped"
            holders[i] -= 1
            if holders[i] == 0:
                freed.append(i)
        self._used -= len(freed)
        top = len(holders)
        while top and not holders[top - 1]:  # what comes back from the top is as if it had never been taken
            top -= 1
        del holders[top:]
        if holders.__sizeof__() > 2 * holders.itemsize * (top + SLACK):  # `del` alone may keep the memory
            self._holders = holders[:]
        return freed


@dataclass
class Row:
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

    def copy(self) -> Row:
        """The same integers in places of their own."""
        return Row(Integers(self.pages.array), Integers(self.counts.array), self.whole, self.finite, self.padded)
