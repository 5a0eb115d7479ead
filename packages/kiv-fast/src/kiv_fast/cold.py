"""The cold pages of a store and of its forks: page tables, arena, summaries and chapters kept in step."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from typing import NamedTuple

import torch
from kiv_reference.config import KIVConfig
from kiv_reference.report import TierBytes

from .arena import Arena
from .host import Table
from .index import Index, Sizes, summarise
from .layout import IdPool, Row, chapter_stops, common_prefix
from .ledger import Counters, Ledger
from .product import product_for
from .rows import ColdRow, near_capacity
from .scan import Scanner
from .scratch import Scratch
from .transfer import transfer_to
from .validate import Shape

LEAST_CHAPTER_PAGES = 512
"""Pages of the smallest chapter: fewer are scored as they are, at four times the bytes but without one call more."""

MOST_CHAPTER_PAGES = 8192
"""Pages of the largest chapter: a step that packs one must not take twice as long as others."""

STAGGER_PAGES = 64
"""Stores of a pool pack their chapters at different pages, within this many."""

SUMMARY_CHUNK = 256
"""Pages summarised at once in a long call."""

TABLE_BYTES = 16
"""Of a page in the table of a row: two integers."""

NOTHING = TierBytes(0, 0, 0)


class Spans(NamedTuple):
    """Summaries of the spans of a row, whatever its candidates are."""

    key: torch.Tensor  # [H, n, D]
    value: torch.Tensor  # [H, n, DV]
    tokens: torch.Tensor  # [n], how many each has, in the dtype of computation


class Cold:
    """Shared by a store and its forks; every page has one holder for each row that it is in."""

    def __init__(
        self,
        shape: Shape,
        config: KIVConfig,
        arena: Arena,
        scratch: Scratch,
        ledger: Ledger,
        counters: Counters,
        ordinal: int,
    ) -> None:
        self.shape, self.config, self.counters = shape, config, counters
        self.arena, self.scratch = arena, scratch
        self.index = Index(shape, config)
        product = product_for(shape.device)
        self.scanner = None
        if product is not None and shape.compute == torch.float32 and not config.exact:
            self.scanner = Scanner(shape, product)
        self._ledger = ledger
        self.transfer = transfer_to(shape.device)
        self._pages, self._spans, self._chapters = IdPool(), IdPool(), IdPool()
        self._delay = ordinal % STAGGER_PAGES
        self._heads = torch.arange(shape.heads, device=shape.device)[:, None]
        self._booked = NOTHING
        self._near_bytes = self._near_promised = 0
        self._pending = False  # whether a promise is booked that has not ended
        self.finite = True  # whether every mean value is finite
        self.sizes = Sizes(shape.heads)

    def promise(self, rows: list[ColdRow], more_pages: int) -> TierBytes:
        """Book room for so many pages more in each row, or refuse before anything happens (SPEC 10.2).

        Returns what was booked.
        """
        held, pages = self._held, len(rows) * more_pages
        more, self._near_promised = NOTHING, 0
        if pages:
            chapters = sum(self._more_chapter_bytes(row.table, more_pages) for row in rows)
            more = self._bytes(pages, pages // self.config.span_pages + len(rows), chapters)
            near, room = sum(self._more_near_bytes(row, more_pages) for row in rows), self._ledger.room(0)
            if room is None or room >= held.device + more.device + near - self._booked.device:
                self._near_promised = near
                more = more._replace(device=more.device + near)
        self.arena.promise(0)
        self.arena.give_way(held.ram + more.ram - self._booked.ram)
        self._book(TierBytes(held.device + more.device, held.ram + more.ram, 0))
        try:
            promised = self.arena.promise(pages)
        except BaseException:
            self._near_promised = 0
            self._book(held)
            raise
        self._pending = pages > 0
        return TierBytes(more.device, more.ram + promised.ram, promised.disk)

    def add(self, row: ColdRow, key: torch.Tensor, value: torch.Tensor, valid: torch.Tensor | None) -> None:
        """Add pages to a row: ``key [n, H, P, D]``, ``value [n, H, P, DV]``, ``valid`` bool ``[n, P]`` or None."""
        n, size = key.shape[0], self.config.page_tokens
        ids = self._pages.take(n)
        try:
            self.arena.write(ids, key, value)
        except BaseException:
            self._pages.drop(ids)
            raise
        for start in range(0, n, SUMMARY_CHUNK):
            part = slice(start, start + SUMMARY_CHUNK)
            summary = summarise(key[part], value[part], None if valid is None else valid[part], self.shape.compute)
            self.index.put(ids[part], summary)
            self.finite = self.finite and bool(torch.isfinite(summary.value.sum()))
            self.sizes.add(summary)
        first = len(row.table.pages)
        row.table.extend(ids, [size] * n if valid is None else valid.sum(dim=1).tolist(), size)
        row.append(first)
        self._build(row, first)
        self.counters.evicted_pages += n

    def _build(self, row: ColdRow, first: int) -> None:
        """Spans, chapters, and near summaries once the pages from `first` on are new."""
        table, span_pages = row.table, self.config.span_pages
        for number in range(first // span_pages, -(-len(table.pages) // span_pages)):
            self._put_span(table, number)
        self._build_chapters(row)
        self._follow(row, first)

    def _build_chapters(self, row: ColdRow) -> None:
        table = row.table
        stops = self._chapter_stops(len(table.pages))
        if self.scanner is not None and stops != table.chapter_stops:
            kept = common_prefix(stops, table.chapter_stops)
            # The old ones go first: the new ones are made from the summaries, and both at once would need more room.
            self.scanner.free(self._chapters.drop(table.chapters[kept:]))
            del table.chapters[kept:], table.chapter_stops[kept:]
            for stop in stops[kept:]:
                first = table.chapter_stops[-1] if table.chapter_stops else 0
                (chapter,) = self._chapters.take(1)
                self.scanner.put(chapter, self.transfer.upload(self.summaries(row, first, stop)))
                table.chapters.append(chapter)
                table.chapter_stops.append(stop)

    def _follow(self, row: ColdRow, first: int) -> None:
        """Keep the summaries of a row's last pages on the device, those from `first` on being new, if there is room."""
        if self.scanner is None:
            return
        start, pages, before = row.far, len(row.table.pages), row.near.nbytes
        more = near_capacity(pages - start) * self.index.keys.record_bytes - before
        room, unpromised = self._ledger.room(0), max(0, more - self._near_promised)
        if room is not None and room < unpromised:
            self.drop_near(row)
            return
        self._near_promised -= max(0, more) - unpromised
        self._book(self._booked._replace(device=self._booked.device + unpromised))
        self._near_bytes += more
        if not before or start != row.near_start:
            first = start
        row.follow(first, self.transfer.upload(self.summaries(row, first, pages)))

    def drop_near(self, row: ColdRow) -> None:
        """Give the room of a row's near summaries back: steps read them from RAM from now on."""
        self._book(self._booked._replace(device=self._booked.device - row.near.nbytes))
        self._near_bytes -= row.near.nbytes
        row.near = row.near[:0].clone()

    def _put_span(self, table: Row, number: int) -> None:
        """Summarise a row's last span, or a new one after it; one that another row holds too is left to that row."""
        if number == len(table.spans):
            table.set_span(number, self._spans.take(1)[0])
        elif self._spans.shared(table.spans[number]):
            self._spans.drop([table.spans[number]])
            table.set_span(number, self._spans.take(1)[0])
        self.index.put_span(table.spans[number], table, number * self.config.span_pages)

    def _chapter_stops(self, pages: int) -> list[int]:
        """Where the chapters of a row of so many pages end."""
        return chapter_stops(pages - self._delay, LEAST_CHAPTER_PAGES, MOST_CHAPTER_PAGES)

    def _more_near_bytes(self, row: ColdRow, more_pages: int) -> int:
        """Most bytes that a row's near summaries take in addition while it gets so many pages more."""
        if self.scanner is None:
            return 0
        # Never so many are near as make a chapter.
        most = min(len(row.table.pages) + more_pages - row.far, LEAST_CHAPTER_PAGES + self._delay)
        return max(0, near_capacity(most) * self.index.keys.record_bytes - row.near.nbytes)

    def _more_chapter_bytes(self, table: Row, more_pages: int) -> int:
        """Most bytes that a row's chapters take in addition while it gets so many pages more."""
        if self.scanner is None:
            return 0
        stops = self._chapter_stops(len(table.pages) + more_pages)
        if stops == table.chapter_stops:
            return 0
        kept = common_prefix(stops, table.chapter_stops)
        start = stops[kept - 1] if kept else 0
        going = table.chapters[kept:]
        stays = any(self._chapters.shared(chapter) for chapter in going)  # for another row
        freed = 0 if stays or not going else table.chapter_stops[-1] - start
        grown = max(0, stops[-1] - start - freed) if stops else 0
        # On the way there are at most so many chapters more than in the end, one of each size.
        sizes = (MOST_CHAPTER_PAGES // LEAST_CHAPTER_PAGES).bit_length()
        return grown * self.scanner.page_bytes + (len(stops) - kept + sizes) * self.scanner.table_bytes

    def settle(self) -> None:
        """End a promise: book what is held and no more."""
        self.arena.promise(0)
        self._pending, self._near_promised = False, 0
        self._book(self._held)

    def share(self, row: ColdRow) -> ColdRow:
        """A second row with the same pages."""
        table = row.table.copy()
        self._pages.share(table.pages)
        self._spans.share(table.spans)
        self._chapters.share(table.chapters)
        copy = ColdRow(table, self.shape.device)
        self._follow(copy, 0)
        return copy

    def cut(self, row: ColdRow, pages: int) -> None:
        """Keep the first `pages` pages of a row."""
        table = row.table
        gone = table.cut(pages, self.config.span_pages, self.config.page_tokens)
        self.arena.free(self._pages.drop(gone.pages))
        self._spans.drop(gone.spans)
        if pages % self.config.span_pages and gone.pages:
            self._put_span(table, pages // self.config.span_pages)
        unused = self._chapters.drop(gone.chapters)
        if self.scanner is not None:
            self.scanner.free(unused)
        if gone.pages:
            self._build_chapters(row)
            self._follow(row, pages)
        if not self._pending:
            self._book(self._held)

    def close(self) -> None:
        """Give all budgets back."""
        self.arena.close()
        self._book(NOTHING)

    def _bytes(self, pages: int, spans: int, extra: int) -> TierBytes:
        index = self.index
        device = pages * TABLE_BYTES + spans * index.span_bytes + extra
        return TierBytes(device, pages * index.page_bytes, 0)

    @property
    def _chapter_bytes(self) -> int:
        return 0 if self.scanner is None else self.scanner.nbytes

    @property
    def _held(self) -> TierBytes:
        return self._bytes(self._pages.used, self._spans.used, self._chapter_bytes + self._near_bytes)

    def row_bytes(self, row: ColdRow) -> TierBytes:
        """Bytes of what a row refers to, without the pages themselves."""
        table, chapters = row.table, 0
        if self.scanner is not None:
            starts = [0, *table.chapter_stops]
            sizes = (stop - start for start, stop in itertools.pairwise(starts))
            chapters = sum(self.scanner.chapter_bytes(size) for size in sizes)
        return self._bytes(len(table.pages), len(table.spans), chapters + row.near.nbytes)

    def device_parts(self) -> dict[str, int]:
        """Device bytes by what they are for."""
        return {
            "page index": self._chapter_bytes,
            "summaries of the last pages": self._near_bytes,
            "span summaries": self._spans.used * self.index.span_bytes,
            "page tables": self._pages.used * TABLE_BYTES,
        }

    def _book(self, held: TierBytes) -> None:
        self._ledger.take(device=held.device - self._booked.device, ram=held.ram - self._booked.ram)
        self._booked = held

    def summaries(self, row: ColdRow, first: int, stop: int) -> torch.Tensor:
        """Mean and spread ``[stop - first, H, 2 D]`` of pages of a row, in RAM; a view if their ids are consecutive."""
        tensor = self.index.keys.tensor
        if stop <= row.table.whole and first < stop:
            at = row.table.pages[first]
            return tensor[at : at + stop - first]
        return tensor.index_select(0, row.ids(first, stop).to(tensor.device))

    def upload_summaries(self, row: ColdRow, first: int, stop: int) -> torch.Tensor:
        """The same on the device; the last pages' are there."""
        if row.near_start <= first < stop <= row.near_start + row.near.shape[0]:
            return row.near[first - row.near_start : stop - row.near_start]
        found = self.summaries(row, first, stop)
        self.counters.summary_bytes_read += found.nbytes
        return self.transfer.upload(found)

    def gather(self, table: Table, units: torch.Tensor, width: int) -> torch.Tensor:
        """Rows int64 ``[K]`` of a table in RAM seen as ``[-1, width]``, on the device: ``[K, width]``."""
        found = table.tensor.view(-1, width).index_select(0, units.to(table.tensor.device))
        self.counters.summary_bytes_read += found.nbytes
        return self.transfer.upload(found)

    def units(self, row: ColdRow, pages: torch.Tensor) -> torch.Tensor:
        """``id * H + head`` of pages int64 ``[H, K]``, each head its own."""
        return self.page_ids(row, pages) * self.shape.heads + self._heads

    def page_ids(self, row: ColdRow, pages: torch.Tensor) -> torch.Tensor:
        """Ids of pages, int64 of any shape."""
        table = row.table
        if table.pages and table.whole == len(table.pages):
            return pages + table.pages[0] if table.pages[0] else pages
        return row.ids(0, len(table.pages))[pages]

    def usable_chapters(self, row: ColdRow, pages: int) -> list[int]:
        """The chapters that lie within the first `pages` pages."""
        return row.table.chapters[: bisect_right(row.table.chapter_stops, pages)]

    def spans(self, row: ColdRow, pages: int) -> Spans:
        """The spans of the first `pages` pages of a row (SPEC 3.2)."""
        table, index, size = row.table, self.index, self.config.span_pages
        tables = (index.span_keys, index.span_values, index.span_counts)
        count = pages // size if pages < len(table.pages) else len(table.spans)
        if count and table.whole_spans:
            at = slice(table.spans[0], table.spans[0] + count)
            key, value, tokens = (part.tensor[at] for part in tables)
        else:
            picked = torch.tensor(table.spans[:count], dtype=torch.int64, device=self.shape.device)
            key, value, tokens = (part.tensor.index_select(0, picked) for part in tables)
        if count * size < pages:  # the last span of the row has more pages than these
            part = slice(count * size, pages)
            last = index.merge(table.pages[part], table.counts[part])
            key, value = torch.cat([key, last[0][None]]), torch.cat([value, last[1][None]])
            tokens = torch.cat([tokens, tokens.new_tensor([last[2]])])
        return Spans(key.transpose(0, 1), value.transpose(0, 1), tokens)
