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
    """The page table of one sequence, also as tensors.

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
        The page from which on what is built of the table is not up to date: spans, chapters, near summaries.
    """

    def __init__(self, table: Row, shape: Shape) -> None:
        self.table, self._device = table, shape.device
        self.near = torch.empty(0, 0, 0, device=shape.device)
        self.near_start = 0
        self.sizes = Sizes(shape.heads)
        self.stale: int | None = 0

    def outdate(self, first: int) -> None:
        """What is built of the pages from `first` on is not up to date."""
        self.stale = first if self.stale is None else min(first, self.stale)

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
        """Page ids int32 ``[stop - first]``, in RAM: a view, until the table changes."""
        return torch.from_numpy(self.table.pages.array[first:stop])

    def counts(self, first: int, stop: int) -> torch.Tensor:
        """Valid tokens of pages, int32 ``[stop - first]``, in RAM: a view, until the table changes."""
        return torch.from_numpy(self.table.counts.array[first:stop])

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
