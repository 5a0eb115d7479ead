"""How a step looks up what is known of cold pages: where each lies, its tokens, its summary, the spans."""

from __future__ import annotations

from typing import NamedTuple

import torch
from kiv_reference.config import KIVConfig

from .host import Table
from .index import Index
from .ledger import Counters
from .reach import Reach
from .rows import ColdRow
from .validate import Shape


class Spans(NamedTuple):
    """Summaries of the spans of a row, whatever its candidates are."""

    key: torch.Tensor  # [H, n, D]
    value: torch.Tensor  # [H, n, DV]
    tokens: torch.Tensor  # [n], how many each has, in the dtype of computation


class Lookup:
    """Page tables and summaries as arithmetic on the device asks for them.

    Attributes
    ----------
    transfer : Transfer
        For what the host knows.
    """

    def __init__(self, shape: Shape, config: KIVConfig, index: Index, counters: Counters, reach: Reach) -> None:
        self.shape, self.config, self.index, self.counters = shape, config, index, counters
        self._reach, self.transfer = reach, reach.transfer
        self._heads = torch.arange(shape.heads, device=shape.device)[:, None]

    def upload_summaries(self, row: ColdRow, first: int, stop: int) -> torch.Tensor:
        """Mean and spread ``[stop - first, H, 2 D]`` of pages of a row, on the device; the last pages' are there."""
        if row.near_start <= first < stop <= row.near_start + row.near.shape[0]:
            return row.near[first - row.near_start : stop - row.near_start]
        found = row.records(self.index.keys, first, stop)
        self.counters.summary_bytes_read += found.nbytes
        return self.transfer.upload(found)

    def gather(self, table: Table, units: torch.Tensor, width: int) -> torch.Tensor:
        """Rows int64 ``[K]`` of a table in RAM seen as ``[-1, width]``; numbers and rows are on the device."""
        found = self._reach.rows(table, width, units)
        self.counters.summary_bytes_read += found.nbytes
        return found

    def page_ids(self, row: ColdRow, pages: torch.Tensor) -> torch.Tensor:
        """Ids of pages of a row, int64 of any shape, both on the device."""
        table = row.table
        if table.pages and table.whole == len(table.pages):
            return pages + table.pages[0] if table.pages[0] else pages
        return self.transfer.upload(row.ids(0, len(table.pages)))[pages].long()

    def units(self, row: ColdRow, pages: torch.Tensor) -> torch.Tensor:
        """``id * H + head`` of pages int64 ``[H, K]`` of a row, each head its own, both on the device."""
        return self.page_ids(row, pages) * self.shape.heads + self._heads

    def counts(self, row: ColdRow, pages: torch.Tensor) -> torch.Tensor:
        """Valid tokens of pages of a row, int64 of any shape, both on the device."""
        if not row.table.padded:
            return torch.full_like(pages, self.config.page_tokens)
        return self.transfer.upload(row.counts(0, len(row.table.pages)))[pages].long()

    def spans(self, row: ColdRow, pages: int) -> Spans:
        """The spans of the first `pages` pages of a row (SPEC 3.2)."""
        table, index, size = row.table, self.index, self.config.span_pages
        count = pages // size if pages < len(table.pages) else len(table.spans)
        key, value, tokens = index.span_keys.tensor, index.span_values.tensor, index.span_counts.tensor
        if count and table.whole_spans:
            at = slice(table.spans[0], table.spans[0] + count)
            key, value, tokens = key[at], value[at], tokens[at]
        else:
            picked = self.transfer.send(torch.tensor(table.spans[:count], dtype=torch.int64, device="cpu"))
            key, value, tokens = (part.index_select(0, picked) for part in (key, value, tokens))
        if count * size < pages:  # the last span of the row has more pages than these
            part = count * size, pages
            *last, more = index.merge(table.pages.tolist(*part), table.counts.tolist(*part))
            last_key, last_value = (self.transfer.send(mean[None]) for mean in last)
            key, value = torch.cat([key, last_key]), torch.cat([value, last_value])
            tokens = torch.cat([tokens, tokens.new_full((1,), more)])
        return Spans(key.transpose(0, 1), value.transpose(0, 1), tokens)
