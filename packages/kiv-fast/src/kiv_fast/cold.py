"""The cold pages of a store and of its forks: page tables, arena, summaries and chapters kept in step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from kiv_reference.config import KIVConfig
from kiv_reference.report import TierBytes

from .arena import Arena
from .host import Table
from .index import Index, Summary, summarise
from .layout import IdPool
from .ledger import Counters, Ledger
from .pinning import Pinning
from .product import product_for
from .rows import ColdRow
from .scan import Scanner
from .scratch import Scratch
from .transfer import transfer_to
from .validate import Shape

CHAPTER_PAGES = 4096
"""Pages of a chapter: so many that the calls of a scan cost little beside the bytes it reads; the pages that are not in
one yet are scored as they are."""

STAGGER_PAGES = 64
"""Stores of a pool pack their chapters at different pages, within this many."""

QUICK_MEMBERS = 16
"""On a CPU, above so many queries at once a float product over all pages is the faster look."""

QUICK_BYTES = 4 << 20
"""With fewer bytes of summaries, too, it costs less to look at all of them exactly."""

SUMMARY_CHUNK = 256
"""Pages summarised at once in a long call."""

TABLE_BYTES = 16
"""Of a page in the table of a row: two integers, in RAM."""

NOTHING = TierBytes(0, 0, 0)


class Spans(NamedTuple):
    """Summaries of the spans of a row, whatever its candidates are."""

    key: torch.Tensor  # [H, n, D]
    value: torch.Tensor  # [H, n, DV]
    log_count: torch.Tensor  # [n]


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
        pinning: Pinning,
    ) -> None:
        self.shape, self.config, self.counters = shape, config, counters
        self.arena, self.scratch = arena, scratch
        self.index = Index(shape, config, pinning)
        product = product_for(shape.device)
        self.scanner = None
        if product is not None and shape.compute == torch.float32 and not config.exact:
            self.scanner = Scanner(shape, CHAPTER_PAGES, product)
        self._ledger = ledger
        self.transfer = transfer_to(shape.device)
        self._pages, self._spans, self._chapters = IdPool(), IdPool(), IdPool()
        self._delay = ordinal % STAGGER_PAGES
        self._booked = NOTHING
        self._pending = False  # whether a promise is booked that has not ended
        self.finite = True  # whether every mean value is finite

    def promise(self, pages: int) -> TierBytes:
        """Book room for so many pages more, or refuse before anything happens (SPEC 10.2); returns what was booked."""
        held = self._held
        more = self._bytes(pages, pages // self.config.span_pages + 1, pages // CHAPTER_PAGES) if pages else NOTHING
        self.arena.promise(0)
        self.arena.give_way(held.ram + more.ram - self._booked.ram)
        self._book(TierBytes(held.device + more.device, held.ram + more.ram, 0))
        try:
            promised = self.arena.promise(pages)
        except BaseException:
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
            summary = Summary(*(self.transfer.fetch(numbers) for numbers in summary))
            self.index.put(ids[part], summary)
            self.finite = self.finite and bool(torch.isfinite(summary.value.sum()))
        first = len(row.table.pages)
        row.table.extend(ids, [size] * n if valid is None else valid.sum(dim=1).tolist(), size)
        row.append(first)
        self._build(row)
        self.counters.evicted_pages += n

    def _build(self, row: ColdRow) -> None:
        """Spans and chapters that are complete."""
        table, span_pages = row.table, self.config.span_pages
        while (len(table.spans) + 1) * span_pages <= len(table.pages):
            span = self._spans.take(1)[0]
            self.index.put_span(span, table, len(table.spans) * span_pages)
            table.add_span(span)
        while self.scanner is not None and (len(table.chapters) + 1) * CHAPTER_PAGES + self._delay <= len(table.pages):
            first = len(table.chapters) * CHAPTER_PAGES
            chapter = self._chapters.take(1)[0]
            self.scanner.put(chapter, self.transfer.upload(self.summaries(row, first, first + CHAPTER_PAGES)))
            table.chapters.append(chapter)

    def settle(self) -> None:
        """End a promise: book what is held and no more."""
        self.arena.promise(0)
        self._pending = False
        self._book(self._held)

    def share(self, row: ColdRow) -> ColdRow:
        """A second row with the same pages."""
        table = row.table.copy()
        self._pages.share(table.pages)
        self._spans.share(table.spans)
        self._chapters.share(table.chapters)
        return ColdRow(table, self.shape)

    def cut(self, row: ColdRow, pages: int) -> None:
        """Keep the first `pages` pages of a row."""
        table = row.table
        gone = table.cut(pages, self.config.span_pages, CHAPTER_PAGES, self.config.page_tokens)
        self.arena.free(self._pages.drop(gone.pages))
        self._spans.drop(gone.spans)
        unused = self._chapters.drop(gone.chapters)
        if self.scanner is not None:
            self.scanner.free(unused)
        if not self._pending:
            self._book(self._held)

    def _bytes(self, pages: int, spans: int, chapters: int) -> TierBytes:
        index = self.index
        chapter = 0 if self.scanner is None else self.scanner.chapter_bytes
        return TierBytes(spans * index.span_bytes + chapters * chapter, pages * (index.page_bytes + TABLE_BYTES), 0)

    @property
    def _held(self) -> TierBytes:
        return self._bytes(self._pages.used, self._spans.used, self._chapters.used)

    def row_bytes(self, row: ColdRow) -> TierBytes:
        """Bytes of what a row refers to, without the pages themselves."""
        return self._bytes(len(row.table.pages), len(row.table.spans), len(row.table.chapters))

    def device_parts(self) -> dict[str, int]:
        """Device bytes by what they are for."""
        chapter = 0 if self.scanner is None else self.scanner.chapter_bytes
        return {
            "page index": self._chapters.used * chapter,
            "span summaries": self._spans.used * self.index.span_bytes,
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
        return tensor.index_select(0, row.ids(first, stop))

    def gather(self, table: Table, units: torch.Tensor, width: int) -> torch.Tensor:
        """Rows int64 ``[K]``, in RAM as the table is, of a table seen as ``[-1, width]``; on the device."""
        return self.transfer.upload(table.tensor.view(-1, width).index_select(0, units))

    def usable_chapters(self, row: ColdRow, pages: int, members: int) -> list[int]:
        """The chapters to scan for so many queries over the first `pages` pages."""
        on_cpu = self.shape.device.type == "cpu"
        if (on_cpu and members > QUICK_MEMBERS) or pages * self.index.keys.record_bytes < QUICK_BYTES:
            return []
        return row.table.chapters[: pages // CHAPTER_PAGES]

    def spans(self, row: ColdRow, full: int) -> Spans:
        """The first `full` spans of a row, all complete (SPEC 3.2)."""
        table, index = row.table, self.index
        tables = (index.span_keys, index.span_values, index.span_counts)
        if full and table.whole_spans:
            at = slice(table.spans[0], table.spans[0] + full)
            key, value, count = (part.tensor[at] for part in tables)
        else:
            picked = torch.tensor(table.spans[:full], dtype=torch.int64, device=self.shape.device)
            key, value, count = (part.tensor.index_select(0, picked) for part in tables)
        return Spans(key.transpose(0, 1), value.transpose(0, 1), torch.log(count))
