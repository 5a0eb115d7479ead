"""Which page is whose: reference-counted ids and the page table of one sequence. Integers only, no tensor."""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field


class IdPool:
    """Reference-counted ids; the lowest free ones are taken first, so that tables stay contiguous."""

    def __init__(self) -> None:
        self._holders: list[int] = []  # up to the highest id in use
        self._free: list[int] = []  # a heap: those below it, and perhaps some above
        self._used = 0

    @property
    def used(self) -> int:
        """Ids that somebody holds."""
        return self._used

    def take(self, n: int) -> list[int]:
        """`n` ids, each with one holder."""
        ids = [heapq.heappop(self._free) for _ in range(min(n, len(self._holders) - self._used))]
        if len(ids) < n:
            self._free.clear()
        self._used += n
        for i in ids:
            self._holders[i] = 1
        first = len(self._holders)
        self._holders.extend([1] * (n - len(ids)))
        ids.extend(range(first, len(self._holders)))
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
                heapq.heappush(self._free, i)
        self._used -= len(freed)
        while holders and not holders[-1]:  # what comes back from the top is as if it had never been taken
            holders.pop()
        if len(self._free) > 2 * (len(holders) - self._used):
            self._free = [i for i in self._free if i < len(holders)]
            heapq.heapify(self._free)
        return freed

    def shared(self, i: int) -> bool:
        """Whether an id has more than one holder."""
        return self._holders[i] > 1


@dataclass
class Row:
    """The cold pages of one sequence, in order of position, and what was built from them.

    Attributes
    ----------
    pages : list of int
        Page ids; page j of the sequence is ``pages[j]``.
    counts : list of int
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

    pages: list[int] = field(default_factory=list[int])
    counts: list[int] = field(default_factory=list[int])
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
        for page, count in zip(pages, counts, strict=True):
            if self.whole == len(self.pages) and (self.whole == 0 or page == self.pages[-1] + 1):
                self.whole += 1
            self.pages.append(page)
            self.counts.append(count)
            self.padded = self.padded or count < page_tokens
            self.empty = self.empty or count == 0

    def cut(self, pages: int, span_pages: int, page_tokens: int) -> Row:
        """Keep the first `pages` pages and what is built from them alone; returns what went, as a row."""
        spans, chapters = -(-pages // span_pages), bisect_right(self.chapter_stops, pages)
        gone = Row(self.pages[pages:], self.counts[pages:], self.spans[spans:], self.chapters[chapters:])
        del self.pages[pages:], self.counts[pages:], self.spans[spans:]
        del self.chapters[chapters:], self.chapter_stops[chapters:]
        self.whole = min(self.whole, pages)
        self.padded = any(count < page_tokens for count in self.counts) if self.padded else False
        self.empty = 0 in self.counts if self.empty else False
        return gone

    def copy(self) -> Row:
        """The same integers in lists of their own."""
        return Row(
            list(self.pages),
            list(self.counts),
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
