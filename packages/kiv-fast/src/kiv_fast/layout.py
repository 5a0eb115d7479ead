"""Which page is whose: reference-counted ids and the page table of one sequence. Integers only, no tensor."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field

from .integers import Integers

BLOCK = 256
"""Ids that are looked through at once for a free one."""


class IdPool:
    """Reference-counted ids; the lowest free ones are taken first, so that tables stay contiguous.

    Parameters
    ----------
    typecode : of an array that counts as many holders as an id may have
    """

    def __init__(self, typecode: str = "I") -> None:
        self._holders = array(typecode)  # up to the highest id in use
        self._full = bytearray()  # a flag for each block of them that is known to have no free one
        self._used = 0

    @property
    def used(self) -> int:
        """Ids that somebody holds."""
        return self._used

    def take(self, n: int) -> list[int]:
        """`n` ids, each with one holder."""
        holders, full, ids = self._holders, self._full, list[int]()
        free = len(holders) - self._used
        while len(ids) < min(n, free):
            start = full.find(0) * BLOCK
            try:
                i = holders.index(0, start, start + BLOCK)
            except ValueError:
                full[start // BLOCK] = 1
            else:
                holders[i] = 1
                ids.append(i)
        self._used += n
        first, more = len(holders), n - len(ids)
        holders.extend(array(holders.typecode, [1]) * more)
        full.extend(bytes(-(-len(holders) // BLOCK) - len(full)))
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
                self._full[i // BLOCK] = 0
        self._used -= len(freed)
        top = len(holders)
        while top and not holders[top - 1]:  # what comes back from the top is as if it had never been taken
            top -= 1
        del holders[top:], self._full[-(-top // BLOCK) :]
        if holders.__sizeof__() > 2 * holders.itemsize * (top + BLOCK):  # `del` alone may keep the memory
            self._holders = holders[:]
        return freed

    def shared(self, i: int) -> bool:
        """Whether an id has more than one holder."""
        return self._holders[i] > 1


@dataclass
class Row:
    """The cold pages of one sequence, in order of position, and what was built from them.

    Attributes
    ----------
    pages : Integers
        Page ids; page j of the sequence is ``pages[j]``.
    counts : Integers
        Valid tokens of each page.
    spans : list of int
        Span ids (SPEC 3.2): span s covers the pages from ``s * span_pages`` on, the last one as many as there are.
    chapters, chapter_stops : list of int
        Chapter ids (see `scan`) and the pages at which they end: a chapter begins where the one before it ends.
    whole : int
        Leading pages with consecutive ids.
    padded : bool
        Whether a page has an invalid token.
    empty : bool
        Whether a page has no valid token.
    whole_spans : bool
        Whether the spans have consecutive ids.
    """

    pages: Integers = field(default_factory=Integers)
    counts: Integers = field(default_factory=Integers)
    spans: list[int] = field(default_factory=list[int])
    chapters: list[int] = field(default_factory=list[int])
    chapter_stops: list[int] = field(default_factory=list[int])
    whole: int = 0
    padded: bool = False
    empty: bool = False
    whole_spans: bool = True

    def set_span(self, number: int, span: int) -> None:
        """Add a span at the end, or put another in the place of the last one."""
        del self.spans[number:]
        self.whole_spans = self.whole_spans and (not self.spans or span == self.spans[-1] + 1)
        self.spans.append(span)

    def extend(self, pages: list[int], counts: list[int], page_tokens: int) -> None:
        """Add pages at the end."""
        held, last = len(self.pages), self.pages[-1] if self.pages else pages[0] - 1
        if self.whole == held:
            self.whole += next((n for n, page in enumerate(pages) if page != last + 1 + n), len(pages))
        self.pages.extend(pages)
        self.counts.extend(counts)
        self.padded = self.padded or min(counts) < page_tokens
        self.empty = self.empty or 0 in counts

    def cut(self, pages: int, span_pages: int, page_tokens: int) -> Row:
        """Keep the first `pages` pages and what is built from them alone; returns what went, as a row."""
        spans, chapters = -(-pages // span_pages), bisect_right(self.chapter_stops, pages)
        gone = Row(Integers(self.pages.array[pages:]), spans=self.spans[spans:], chapters=self.chapters[chapters:])
        self.pages.resize(pages)
        self.counts.resize(pages)
        del self.spans[spans:]
        del self.chapters[chapters:], self.chapter_stops[chapters:]
        self.whole = min(self.whole, pages)
        self.padded = self.padded and bool((self.counts.array < page_tokens).any())
        self.empty = self.empty and bool((self.counts.array == 0).any())
        return gone

    def copy(self) -> Row:
        """The same integers in places of their own."""
        return Row(
            Integers(self.pages.array),
            Integers(self.counts.array),
            list(self.spans),
            list(self.chapters),
            list(self.chapter_stops),
            self.whole,
            self.padded,
            self.empty,
            self.whole_spans,
        )


def chapter_stops(pages: int, least: int, most: int) -> list[int]:
    """Where the chapters over `pages` pages end: all of `most` pages, then each half as large as fits, down to `least`.

    So fewer than `least` pages are in no chapter, and a page moves to a larger one only log2(most / least) times.
    """
    stops: list[int] = []
    at, size = 0, most
    while size >= least:
        while at + size <= pages:
            at += size
            stops.append(at)
        size //= 2
    return stops


def most_chapters(pages: int, least: int, most: int) -> int:
    """Most chapters that a row has at any length up to `pages`: of each size below `most` it has one at most."""
    if pages < least:
        return 0
    return pages // most + min((most // least).bit_length() - 1, (pages // least).bit_length())


def common_prefix(one: list[int], other: list[int]) -> int:
    """How many leading numbers two lists share."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def runs(ids: list[int]) -> list[tuple[int, int, int]]:
    """Maximal runs of consecutive ids: (offset in the list, first id, length)."""
    out: list[tuple[int, int, int]] = []
    for offset, i in enumerate(ids):
        if out and out[-1][1] + out[-1][2] == i:
            start, first, length = out[-1]
            out[-1] = (start, first, length + 1)
        else:
            out.append((offset, i, 1))
    return out
