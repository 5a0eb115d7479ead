"""Cold pages in RAM alone."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from kiv_reference.snapshot import ColdPages
from numpy.typing import NDArray

from ..memory.growable_table import Table
from ..memory.ledger import Reservation
from ..shape import Shape, aligned
from .absent import Absent
from .arena import Arena
from .resources import Resources


class RamArena(Arena):
    """All pages in RAM, pinned where a device reads them; a page's place is its id."""

    def __init__(self, shape: Shape, resources: Resources) -> None:
        super().__init__(shape, resources, resources.pinning, huge=True)
        self._gather, self._counters = resources.gather, resources.counters
        self._absent: Absent | None = None

    def write(self, ids: list[int], key: torch.Tensor, value: torch.Tensor, reservation: Reservation) -> None:
        """Copy in pages (`Arena.write`)."""
        for table, rows in ((self._key, key), (self._value, value)):
            table.put(ids, rows)
        reservation.in_ram -= len(ids)

    def free(self, ids: list[int], reservation: Reservation | None = None) -> None:
        """Return the memory of pages (`Arena.free`)."""
        if self._absent is not None:
            self._absent.forget(ids)
            self._look()
        self._key.forget(ids)
        self._value.forget(ids)
        if reservation is None:
            self._account.give(ram=len(ids) * self.page_bytes)
        else:
            reservation.in_ram += len(ids)

    def _rows(self, name: str, table: Table, places: torch.Tensor) -> torch.Tensor:
        if self.absent:
            self.bring(table is self._value, places)
        return self._gather.rows(table, places)

    def table(self, values: bool) -> torch.Tensor | None:
        """View all keys or values (`Arena.table`)."""
        table = self._value if values else self._key
        return table.tensor if self._gather.in_place else self._gather.whole(table)

    def pieces(self, ids: list[int]) -> tuple[list[torch.Tensor], list[torch.Tensor]] | None:
        """View whole pages where they lie pinned (`Arena.pieces`)."""
        if self._gather.in_place or not (self._key.pinned and self._value.pinned):
            return None
        return self._key.pieces(ids), self._value.pieces(ids)

    @property
    def reads_saved(self) -> bool:
        """Whether the host may read (`Arena.reads_saved`): no device that reads by itself would wait for it."""
        return self._gather.in_place

    def adopt(self, ids: list[int], source: ColdPages, reservation: Reservation) -> None:
        """Give pages their addresses, and no memory yet (`Arena.adopt`)."""
        for table in (self._key, self._value):
            table.use(ids)
        self._absent = Absent(source, (self._key, self._value), self._counters)
        self.absent = True
        reservation.in_ram -= len(ids)

    def _look(self) -> None:
        """Note whether something is still to be read."""
        if self._absent is not None and not self._absent.count:
            self._absent, self.absent = None, False

    def bring(self, values: bool, places: torch.Tensor) -> None:
        """Read absent blocks (`Arena.bring`)."""
        if self._absent is not None:
            self._absent.bring_tokens(values, places[places >= 0])
            self._look()

    def bring_pages(self, pages: NDArray[np.integer], heads: slice) -> None:
        """Read absent pages (`Arena.bring_pages`)."""
        if self._absent is not None:
            ids, numbers = np.unique(pages).astype(np.int64), np.arange(self._shape.heads)[heads]
            parts = np.repeat(ids, len(numbers)), np.tile(numbers, len(ids))
            for values in (False, True):
                self._absent.bring_parts(values, *parts)
            self._look()

    def parts(self, values: bool, pages: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
        """Copy parts (`Arena.parts`)."""
        if self._absent is not None:
            self._absent.bring_parts(values, pages.numpy(), heads.numpy())
            self._look()
        table = self._value if values else self._key
        return table.tensor[pages, heads].flatten(1)

    def tile(self, ids: list[int], heads: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Return whole pages (`Arena.tile`): a view where one head's pages lie side by side."""
        first, n = ids[0], len(ids)
        self.bring_pages(np.array(ids), heads)
        key, value = (table.tensor[:, heads] for table in (self._key, self._value))
        if ids[-1] - first == n - 1 and all(b == a + 1 for a, b in itertools.pairwise(ids)):
            key, value = key[first : first + n], value[first : first + n]
        else:
            at = torch.tensor(ids, device="cpu")
            key, value = key.index_select(0, at), value.index_select(0, at)
        return aligned(key.transpose(0, 1).flatten(1, 2)), aligned(value.transpose(0, 1).flatten(1, 2))
