"""Where the pages of one sequence lie: its page table as tensors, and the places of pages and spans in tables.

The tables are in RAM, like the pages: what is read there must be known there.
"""

from __future__ import annotations

import torch

from .host import Table
from .layout import Row
from .validate import Shape


class ColdRow:
    """The page table of one sequence, and the same as tensors.

    Parameters
    ----------
    table : Row
    shape : of the store
    """

    def __init__(self, table: Row, shape: Shape) -> None:
        host = torch.device("cpu")
        self.table, self._device, self._count = table, shape.device, shape.heads
        self._heads = torch.arange(shape.heads)[:, None]
        self._ids = Table((), torch.int64, host)
        self._counts = Table((), torch.int64, host)
        self.append(0)

    def append(self, first: int) -> None:
        """Bring the tensors up to date with the pages from `first` on."""
        pages = len(self.table.pages)
        for tensor_table, numbers in ((self._ids, self.table.pages), (self._counts, self.table.counts)):
            tensor_table.ensure(pages)
            if first < pages:
                tensor_table.tensor[first:pages] = torch.tensor(numbers[first:], dtype=torch.int64)

    def ids(self, first: int, stop: int) -> torch.Tensor:
        """Page ids int64 ``[stop - first]``, in RAM."""
        return self._ids.tensor[first:stop]

    def host_counts(self, first: int, stop: int) -> torch.Tensor:
        """Valid tokens of pages, int64 ``[stop - first]``, in RAM."""
        return self._counts.tensor[first:stop]

    def counts(self, first: int, stop: int) -> torch.Tensor:
        """Valid tokens of pages, int64 ``[stop - first]``, on the device."""
        return self.host_counts(first, stop).to(self._device)

    def empty(self, first: int, stop: int) -> torch.Tensor:
        """Whether pages have no valid token, bool ``[stop - first]``, on the device."""
        return self.counts(first, stop) == 0

    def page_ids(self, pages: torch.Tensor) -> torch.Tensor:
        """Ids of pages, int64 of any shape, both in RAM."""
        table = self.table
        if table.pages and table.whole == len(table.pages):
            return pages + table.pages[0] if table.pages[0] else pages
        return self.ids(0, len(table.pages))[pages]

    def units(self, pages: torch.Tensor) -> torch.Tensor:
        """``id * H + head`` of pages int64 ``[H, K]``, each head its own, both in RAM."""
        return self.page_ids(pages) * self._count + self._heads

    def span_units(self, spans: torch.Tensor) -> torch.Tensor:
        """``id * H + head`` of complete spans int64 ``[H, K]``, each head its own, both in RAM."""
        all_ids = self.table.spans
        ids = spans + all_ids[0] if self.table.whole_spans else torch.tensor(all_ids, dtype=torch.int64)[spans]
        return ids * self._count + self._heads
