"""The cold pages of a store and of its forks: page tables, arena, summaries, spans and chapters kept in step."""

from __future__ import annotations

from copy import deepcopy

import torch
from kiv_reference.config import KIVConfig
from kiv_reference.report import TierBytes

from .arena import Arena
from .chapters import Chapters
from .index import Index, Summary, summarise
from .interrupts import REFUSALS
from .layout import IdPool, Row
from .ledger import NOTHING, Account, Booking, Counters
from .lookup import Lookup
from .pinning import Pinning
from .reach import Reach
from .rows import ColdRow
from .scratch import Scratch
from .tuning import Tuning
from .validate import Shape

TABLE_BYTES = 16
"""Of what is noted about a page, in RAM: in the table of a row two integers of four bytes, its holders, and a flag in
each of four tables that hold it."""


class Cold(Lookup):
    """Shared by a store and its forks; every page has one holder for each row that it is in."""

    def __init__(
        self,
        shape: Shape,
        config: KIVConfig,
        arena: Arena,
        scratch: Scratch,
        account: Account,
        counters: Counters,
        ordinal: int,
        pinning: Pinning,
        reach: Reach,
        tuning: Tuning,
    ) -> None:
        super().__init__(shape, config, Index(shape, config, pinning, reach.transfer), counters, reach)
        self.arena, self.scratch, self.tuning, self.account = arena, scratch, tuning, account
        self._booking = Booking(account)
        self.chapters = Chapters(shape, config, self.index.keys, self.transfer, self._booking, ordinal, tuning)
        self._pages, self._spans = IdPool(), IdPool()
        self._promises: dict[object, tuple[TierBytes, int]] = {}  # bytes beside the arena's, and pages, by owner

    def promise(self, owner: object, rows: list[ColdRow], more_pages: int) -> TierBytes:
        """Book room for so many pages more in each row, or refuse before anything happens (SPEC 10.2).

        A promise stands until its owner, one of the states that share the pages, settles it or gets another.
        Returns what was booked, without near summaries.
        """
        self.settle(owner)
        pages = len(rows) * more_pages
        if not pages:
            return NOTHING
        due, others = self._due, self._promised_pages
        chapters = sum(self.chapters.more_bytes(row.table, more_pages) for row in rows)
        more = self._bytes(pages, sum(self._more_spans(row.table, more_pages) for row in rows), chapters)
        near = self.chapters.promise_near(rows, more_pages, due.device + more.device)
        before = self.arena.promise(others)
        try:
            self.arena.give_way(due.ram + more.ram - self._booking.held.ram)
            self._booking.book(TierBytes(due.device + more.device + near, due.ram + more.ram, 0))
            after = self.arena.promise(others + pages)
        except REFUSALS:
            self.settle(owner)
            raise
        self._promises[owner] = more, pages
        ram, disk = after.ram - before.ram, after.disk - before.disk
        return TierBytes(more.device, more.ram + ram, disk)

    def settle(self, owner: object) -> None:
        """End a promise: book what is held, and what others were promised."""
        self._promises.pop(owner, None)
        self.chapters.settle()
        self.arena.promise(self._promised_pages)
        self._booking.book(self._due)

    @property
    def _promised_pages(self) -> int:
        return sum(pages for _, pages in self._promises.values())

    @property
    def _due(self) -> TierBytes:
        """What is held and promised, of the device and of RAM beside the arena's."""
        due = self._held
        for more, _ in self._promises.values():
            due = TierBytes(due.device + more.device, due.ram + more.ram, 0)
        return due._replace(device=due.device + self.chapters.near_promised)

    def add(self, row: ColdRow, key: torch.Tensor, value: torch.Tensor, valid: torch.Tensor | None) -> None:
        """Add pages to a row: ``key [n, H, P, D]``, ``value [n, H, P, DV]``, ``valid`` bool ``[n, P]`` or None."""
        n, size = key.shape[0], self.config.page_tokens
        ids = self._pages.take(n)
        try:
            self.arena.write(ids, key, value)
        except REFUSALS:
            self._pages.drop(ids)
            raise
        first = len(row.table.pages)
        try:
            for start in range(0, n, self.tuning.summary_chunk):
                part = slice(start, start + self.tuning.summary_chunk)
                summary = summarise(key[part], value[part], None if valid is None else valid[part], self.shape.compute)
                summary = Summary(*(self.transfer.fetch(numbers) for numbers in summary))
                self.index.put(ids[part], summary)
                row.sizes.add(summary, first + start)
            counts: list[int] = [size] * n if valid is None else valid.sum(dim=1).tolist()
        except REFUSALS:
            row.sizes.cut(first)
            self.arena.free(self._pages.drop(ids))
            self.index.forget(ids)
            raise
        row.outdate(first)
        row.table.extend(ids, counts, size)
        self.mend(row)
        self.counters.evicted_pages += n

    def mend(self, row: ColdRow) -> None:
        """Build what is not up to date: spans, chapters, near summaries.

        It can be done again if memory was refused on the way.
        """
        if (first := row.stale) is None:
            return
        table, span_pages = row.table, self.config.span_pages
        for number in range(first // span_pages, -(-len(table.pages) // span_pages)):
            self._put_span(table, number)
        self.chapters.build(row)
        self.chapters.follow(row, first)
        row.stale = None

    def _more_spans(self, table: Row, more_pages: int) -> int:
        """Most spans that a row takes in addition while it gets so many pages more."""
        pages, size = len(table.pages), self.config.span_pages
        left = pages % size > 0 and self._spans.shared(table.spans[-1])  # whether to another row
        return -(-(pages + more_pages) // size) - len(table.spans) + left

    def _put_span(self, table: Row, number: int) -> None:
        """Summarise a row's last span, or a new one after it; one that another row holds too is left to that row."""
        if number == len(table.spans):
            table.set_span(number, self._spans.take(1)[0])
        elif self._spans.shared(table.spans[number]):
            self._spans.drop([table.spans[number]])
            table.set_span(number, self._spans.take(1)[0])
        self.index.put_span(table.spans[number], table, number * self.config.span_pages)

    def share(self, row: ColdRow) -> ColdRow:
        """A second row with the same pages."""
        self.mend(row)
        copy = ColdRow(row.table.copy(), self.shape)
        copy.sizes = deepcopy(row.sizes)
        copy.stale = None
        self._pages.share(copy.table.pages)
        self._spans.share(copy.table.spans)
        self.chapters.share(copy.table.chapters)
        try:
            self.chapters.follow(copy, 0)
        except REFUSALS:
            self.cut(copy, 0)
            raise
        return copy

    def promise_cut(self, owner: object, rows: list[ColdRow], pages: int) -> TierBytes:
        """Book what is built anew of rows that are cut to so many pages, or refuse: what other rows hold too stays.

        Takes the place of what was promised to `owner`; as `promise`.
        """
        number, part = divmod(pages, self.config.span_pages)
        spans = sum(self._spans.shared(row.table.spans[number]) for row in rows) if part else 0
        chapters = sum(self.chapters.parted_bytes(row.table, pages) for row in rows)
        before, more = self._promises.get(owner), self._bytes(0, spans, chapters)
        self._promises[owner] = more, 0
        try:
            self._booking.book(self._due)
        except REFUSALS:
            if before is None:
                del self._promises[owner]
            else:
                self._promises[owner] = before
            raise
        return more

    def cut(self, row: ColdRow, pages: int) -> None:
        """Keep the first `pages` pages of a row. It asks for no memory: `mend` builds what is to be built of them."""
        gone = row.table.cut(pages, self.config.span_pages, self.config.page_tokens)
        freed = self._pages.drop(gone.pages)
        self.arena.free(freed)
        self.index.forget(freed)
        self.index.forget_spans(self._spans.drop(gone.spans))
        self.chapters.drop(gone.chapters)
        row.sizes.cut(pages)
        if gone.pages:
            row.outdate(pages)
            self.chapters.drop_near(row)
        # Only lowered, which is never refused: a call that failed may hold what it was promised beside the promise.
        due, held = self._due, self._booking.held
        self._booking.book(TierBytes(min(due.device, held.device), min(due.ram, held.ram), 0))

    def renew(self) -> None:
        """Book the room of promises again, some of which was taken for pages that were given back."""
        self.arena.promise(self._promised_pages)

    def _bytes(self, pages: int, spans: int, extra: int) -> TierBytes:
        index = self.index
        return TierBytes(spans * index.span_bytes + extra, pages * (index.page_bytes + TABLE_BYTES), 0)

    @property
    def _held(self) -> TierBytes:
        return self._bytes(self._pages.used, self._spans.used, self.chapters.nbytes + self.chapters.near_bytes)

    def row_bytes(self, row: ColdRow) -> TierBytes:
        """Bytes of what a row refers to, without the pages themselves."""
        return self._bytes(len(row.table.pages), len(row.table.spans), self.chapters.row_bytes(row))

    def device_parts(self) -> dict[str, int]:
        """Device bytes by what they are for."""
        return {
            "page index": self.chapters.nbytes,
            "summaries of the last pages": self.chapters.near_bytes,
            "span summaries": self._spans.used * self.index.span_bytes,
        }
