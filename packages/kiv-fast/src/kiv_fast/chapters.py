"""What a step need not read from RAM: quantised chapters of pages, and the summaries of the last pages as they are."""

from __future__ import annotations

import itertools
from bisect import bisect_right

import torch
from kiv_reference.config import KIVConfig

from .host import Table
from .interrupts import REFUSALS
from .layout import IdPool, Row, chapter_stops, common_prefix, most_chapters
from .ledger import Booking
from .product import product_for
from .rows import ColdRow, near_capacity
from .scan import Scanner
from .transfer import Transfer
from .tuning import Tuning
from .validate import Shape


class Chapters:
    """The chapters of a store and of its forks, and their near summaries; none where the device cannot scan them.

    Parameters
    ----------
    summaries : Table
        Of pages, in RAM.
    booking : Booking
        Where near summaries are booked as they come and go; chapters are booked by who calls.
    ordinal : int
        Of the store in its pool.
    tuning : Tuning

    Attributes
    ----------
    near_bytes, near_promised : int
        Bytes that near summaries take, and that they may take in a call that was promised room.
    """

    def __init__(
        self,
        shape: Shape,
        config: KIVConfig,
        summaries: Table,
        transfer: Transfer,
        booking: Booking,
        ordinal: int,
        tuning: Tuning,
    ) -> None:
        self._tuning = tuning
        page = shape.token_bytes * config.page_tokens // shape.heads + summaries.record_bytes // shape.heads
        product = product_for(shape.device, 2 * shape.key_width, page)
        self.scanner = None
        if product is not None and shape.compute == torch.float32 and not config.exact:
            self.scanner = Scanner(shape, product)
        self._summaries, self._transfer, self._booking = summaries, transfer, booking
        self._ids = IdPool()
        self._nothing = torch.empty(0, 0, 0, device=shape.device)
        self._delay = ordinal % self._tuning.stagger_pages
        self.near_bytes = self.near_promised = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all chapters."""
        return 0 if self.scanner is None else self.scanner.nbytes

    def row_bytes(self, row: ColdRow) -> int:
        """Bytes of a row's chapters and near summaries."""
        if self.scanner is None:
            return 0
        starts = [0, *row.table.chapter_stops]
        sizes = (stop - start for start, stop in itertools.pairwise(starts))
        return sum(self.scanner.chapter_bytes(size) for size in sizes) + row.near.nbytes

    def usable(self, row: ColdRow, pages: int) -> list[int]:
        """The chapters that lie within the first `pages` pages."""
        return row.table.chapters[: bisect_right(row.table.chapter_stops, pages)]

    def build(self, row: ColdRow) -> None:
        """Make the chapters that a row of its length has."""
        table = row.table
        stops = self._stops(len(table.pages))
        if self.scanner is not None and stops != table.chapter_stops:
            kept = common_prefix(stops, table.chapter_stops)
            # The old ones go first: the new ones are made from the summaries, and both at once would need more room.
            self.drop(table.chapters[kept:])
            del table.chapters[kept:], table.chapter_stops[kept:]
            for stop in stops[kept:]:
                first = table.chapter_stops[-1] if table.chapter_stops else 0
                (chapter,) = self._ids.take(1)
                try:
                    self.scanner.put(chapter, self._upload(row, first, stop))
                except REFUSALS:
                    self._ids.drop([chapter])
                    raise
                table.chapters.append(chapter)
                table.chapter_stops.append(stop)

    def share(self, chapters: list[int]) -> None:
        """Another row holds these chapters too."""
        self._ids.share(chapters)

    def drop(self, chapters: list[int]) -> None:
        """A row holds these chapters no longer."""
        unused = self._ids.drop(chapters)
        if self.scanner is not None:
            self.scanner.free(unused)

    def follow(self, row: ColdRow, first: int) -> None:
        """Keep the summaries of a row's last pages on the device, those from `first` on being new, if there is room."""
        if self.scanner is None:
            return
        start, pages, before = row.far, len(row.table.pages), row.near.nbytes
        more = near_capacity(pages - start) * self._summaries.record_bytes - before
        room, unpromised = self._booking.room, max(0, more - self.near_promised)
        if room is not None and room < unpromised:
            self.drop_near(row)
            return
        if not before or start != row.near_start:
            first = start
        self._booking.take(unpromised)
        try:
            row.follow(first, self._upload(row, first, pages))
        except REFUSALS:
            self._booking.take(-unpromised)
            raise
        self.near_promised -= more - unpromised  # what shrinks has its room again in the same call
        self.near_bytes += more

    def drop_near(self, row: ColdRow) -> None:
        """Give the room of a row's near summaries back: steps read them from RAM from now on."""
        self._booking.take(-row.near.nbytes)
        self.near_bytes -= row.near.nbytes
        row.near = self._nothing

    def more_bytes(self, table: Row, more_pages: int) -> int:
        """Most bytes that a row's chapters take in addition while it gets so many pages more."""
        if self.scanner is None:
            return 0
        stops = self._stops(len(table.pages) + more_pages)
        if stops == table.chapter_stops:
            return 0
        kept = common_prefix(stops, table.chapter_stops)
        start = stops[kept - 1] if kept else 0
        going = table.chapters[kept:]
        stays = any(self._ids.shared(chapter) for chapter in going)  # for another row
        freed = 0 if stays or not going else table.chapter_stops[-1] - start
        grown = max(0, stops[-1] - start - freed) if stops else 0
        sizes = self._tuning.least_chapter_pages, self._tuning.most_chapter_pages
        most = most_chapters(len(table.pages) + more_pages - self._delay, *sizes)
        more = max(0, most - (kept if stays else len(table.chapters)))
        return grown * self.scanner.page_bytes + more * self.scanner.table_bytes

    def parted_bytes(self, table: Row, pages: int) -> int:
        """Most bytes that a row's chapters take in addition once it is cut to so many pages: others keep theirs."""
        stops = self._stops(pages)
        kept = common_prefix(stops, table.chapter_stops)
        if self.scanner is None or not any(self._ids.shared(chapter) for chapter in table.chapters[kept:]):
            return 0
        new = itertools.pairwise([stops[kept - 1] if kept else 0, *stops[kept:]])
        return sum(self.scanner.chapter_bytes(stop - start) for start, stop in new)

    def promise_near(self, rows: list[ColdRow], more_pages: int, device: int) -> int:
        """Bytes that near summaries of so many pages more may take, if there is room once `device` bytes are booked."""
        near, room = sum(self._more_near_bytes(row, more_pages) for row in rows), self._booking.room
        self.near_promised = near if room is None or room >= device + near - self._booking.held.device else 0
        return self.near_promised

    def settle(self) -> None:
        """End a promise."""
        self.near_promised = 0

    def break_promise(self) -> None:
        """Give the room back that near summaries were promised: they have it only as long as nothing else needs it."""
        self._booking.take(-self.near_promised)
        self.near_promised = 0

    def _more_near_bytes(self, row: ColdRow, more_pages: int) -> int:
        """Most bytes that a row's near summaries take in addition while it gets so many pages more."""
        if self.scanner is None:
            return 0
        # Never so many are near as make a chapter.
        most = min(len(row.table.pages) + more_pages - row.far, self._tuning.least_chapter_pages + self._delay)
        return max(0, near_capacity(most) * self._summaries.record_bytes - row.near.nbytes)

    def _stops(self, pages: int) -> list[int]:
        """Where the chapters of a row of so many pages end."""
        return chapter_stops(pages - self._delay, self._tuning.least_chapter_pages, self._tuning.most_chapter_pages)

    def _upload(self, row: ColdRow, first: int, stop: int) -> torch.Tensor:
        return self._transfer.upload(row.records(self._summaries, first, stop))
