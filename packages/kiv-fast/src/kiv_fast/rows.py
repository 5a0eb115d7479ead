"""The cold pages of one sequence: where they lie, and on the device the summaries that no chapter holds yet.

Page tables are in RAM, like the pages: what is read there must be known there.
"""

from __future__ import annotations

import torch

from .host import Table
from .index import Sizes
from .layout import Row
from .validate import Shape

LEAST_NEAR = 16
"""Summaries that the first buffer has room for."""


class ColdRow:
    """The page table of one sequence, and the same as tensors.

    Parameters
    ----------
    table : Row
    shape : of the store

    Attributes
    ----------
    near : [capacity, H, 2 D], on the device
        Summaries of the pages from `near_start` on, which the scan of chapters does not see: so that a step need not
        fetch them from RAM.
    near_start : int
    sizes : Sizes
    stale : int, or None
        The page from which on what is built of the table is not up to date: the tensors here, spans, chapters.
    """

    def __init__(self, table: Row, shape: Shape) -> None:
        host = torch.device("cpu")
        self.table, self._device = table, shape.device
        self._ids = Table((), torch.int64, host)
        self._counts = Table((), torch.int64, host)
        self._numbered = 0  # pages that they hold
        self.near = torch.empty(0, 0, 0, device=shape.device)
        self.near_start = 0
        self.sizes = Sizes(shape.heads)
        self.stale: int | None = 0

    def outdate(self, first: int) -> None:
        """What is built of the pages from `first` on is not up to date."""
        self.stale = first if self.stale is None else min(first, self.stale)

    def number(self, first: int) -> None:
        """Bring ids and counts up to date with the pages from `first` on."""
        pages = len(self.table.pages)
        for tensor_table, numbers in ((self._ids, self.table.pages), (self._counts, self.table.counts)):
            if gone := range(pages, self._numbered):
                tensor_table.forget(gone)
            if first < pages:
                tensor_table.use(range(first, pages))
                tensor_table.tensor[first:pages] = torch.tensor(numbers[first:], dtype=torch.int64, device="cpu")
        self._numbered = pages

    @property
    def far(self) -> int:
        """Pages that chapters hold."""
        return self.table.chapter_stops[-1] if self.table.chapter_stops else 0

    def follow(self, first: int, summaries: torch.Tensor) -> None:
        """Bring the near summaries up to date: ``[n, H, 2 D]`` of pages from `first` on, `far` or where they end."""
        start, pages = self.far, len(self.table.pages)
        capacity = near_capacity(pages - start)
        near = self.near
        if (capacity, *summaries.shape[1:]) != near.shape:
            near = summaries.new_empty(capacity, *summaries.shape[1:])
            if first > start:
                near[: first - start] = self.near[: first - start]
        near[first - start : pages - start] = summaries
        self.near, self.near_start = near, start

    def ids(self, first: int, stop: int) -> torch.Tensor:
        """Page ids int64 ``[stop - first]``, in RAM."""
        return self._ids.tensor[first:stop]

    def counts(self, first: int, stop: int) -> torch.Tensor:
        """Valid tokens of pages, int64 ``[stop - first]``, in RAM."""
        return self._counts.tensor[first:stop]

    def empty(self, first: int, stop: int) -> torch.Tensor:
        """Whether pages have no valid token, bool ``[stop - first]``, on the device."""
        return (self.counts(first, stop) == 0).to(self._device, non_blocking=True)

    def records(self, table: Table, first: int, stop: int) -> torch.Tensor:
        """What a table in RAM has about pages: ``[stop - first, ...]``, a view if their ids are consecutive."""
        if stop <= self.table.whole and first < stop:
            at = self.table.pages[first]
            return table.tensor[at : at + stop - first]
        return table.tensor.index_select(0, self.ids(first, stop))


def near_capacity(pages: int) -> int:
    """Summaries that the buffer for so many pages has room for: it doubles."""
    return max(LEAST_NEAR, 1 << (pages - 1).bit_length()) if pages else 0
