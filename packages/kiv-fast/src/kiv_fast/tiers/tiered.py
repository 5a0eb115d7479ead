"""Cold pages in RAM as far as `ram_bytes` goes, and beyond it on disk: those that came first are evicted first."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from kiv_reference.config import KIVConfig
from kiv_reference.errors import KIVBudgetError, KIVStorageError
from kiv_reference.report import TierBytes
from kiv_reference.snapshot import ColdPages
from numpy.typing import NDArray

from ..interrupts import REFUSALS, is_refusal
from ..memory.growable_table import Table
from ..memory.ledger import Reservation
from ..pages.block_table import grown, integers, stripped
from ..shape import Shape
from .arena import Arena
from .page_file import PageFile
from .resources import Resources
from .row_cache import NOTED_BYTES, WAYS, RowCache, copy_rows
from .saved import SavedParts

NOWHERE = -1
"""Of a page that is not stored, and of a slot that is free. Places on disk are counted down from below it."""

SAVED = -(2**31)
"""Of a page that is read where it was saved."""

BEHIND = 1 << 62
"""From here on the row cache knows what lies in saved pages; no scratch file is as long."""


class TieredArena(Arena):
    """Pages under a RAM budget. The host must know which pages a step reads."""

    def __init__(self, shape: Shape, resources: Resources) -> None:
        super().__init__(shape, resources, None, huge=False)
        self._scratch, self._transfer = resources.scratch, resources.gather.transfer
        self._file, self._counters = PageFile(shape, resources), resources.counters
        self._place = integers()  # by page: its slot in RAM, or where on disk it is
        self._page = integers()  # by slot
        self._hand = 0  # the slot from which on the next page to be evicted is sought
        self._reservations: list[Reservation] = []
        self._tuning, self._step_rows = resources.tuning, rows_of_a_step(resources.config, shape)
        self._rows_read: RowCache | None = None  # the last ones, of pages on disk
        self._saved: SavedParts | None = None

    @property
    def resident(self) -> int:
        """Pages in RAM."""
        return int(np.count_nonzero(self._page != NOWHERE))

    @property
    def _reserved_on_disk(self) -> int:
        return sum(reservation.on_disk for reservation in self._reservations)

    def reserve(self, pages: int) -> Reservation:
        """Take RAM for as many of the pages as fit, and room on disk for the others or those that they displace."""
        room = self._account.room(1)
        in_ram = pages if room is None else min(pages, max(0, room) // self.page_bytes)
        if pages > in_ram:
            try:
                self._file.ensure(self._reserved_on_disk + pages - in_ram)
            except (KIVBudgetError, KIVStorageError):
                if self._rows_read is None:
                    raise
                self.drop_rows()  # for whose RAM there is a better use now
                return self.reserve(pages)
        self._account.take(ram=in_ram * self.page_bytes)
        reservation = Reservation(in_ram, pages - in_ram)
        self._reservations.append(reservation)
        if self._file.pages or reservation.on_disk:
            self._keep_rows()
        return reservation

    def _keep_rows(self) -> None:
        """Keep rows that are read from disk, where pages can make room for them in RAM; a step is slower without."""
        if self._rows_read is not None or not self._step_rows:
            return
        row = max(self._shape.key_width, self._shape.value_width) * self._shape.dtype.itemsize
        most = self._tuning.row_steps * self._step_rows * (row + NOTED_BYTES)
        nbytes = min(most, self._account.room_for_rows(self._tuning.row_share))
        # With less than half of it, what a step brings would displace what the next one needs.
        if nbytes < max(most // 2, WAYS * (row + NOTED_BYTES)):
            return
        room = self._account.room(1)
        if room is not None and room + self.resident * self.page_bytes < nbytes:
            return  # no pages of other stores, nor their rows, shall give way
        try:
            self._account.take_rows(nbytes)
            self._rows_read = RowCache(row, nbytes)
        except REFUSALS as error:
            if not is_refusal(error):
                raise
            self.drop_rows()

    def drop_rows(self) -> None:
        """Free the RAM of rows that were read from disk (`Arena.drop_rows`)."""
        self._rows_read = None
        self._account.take_rows(-self._account.rows)

    def release(self, reservation: Reservation) -> None:
        """Give back the places that were not used."""
        super().release(reservation)
        if reservation in self._reservations:
            self._reservations.remove(reservation)
        self._trim()

    def _trim(self) -> None:
        """Give back what only pages on disk need, or those to come."""
        self._file.trim(self._reserved_on_disk)
        if not self._file.pages and not self._reserved_on_disk and not self._in_saved(self._place):
            self.drop_rows()

    def make_room(self, nbytes: int) -> None:
        """Evict pages, but not to places that are reserved (`Arena.make_room`)."""
        while (room := self._account.room(1)) is not None and room < nbytes and self.resident:
            try:
                self._file.ensure(self._reserved_on_disk + 1)
            except (KIVBudgetError, KIVStorageError):
                if self._rows_read is None:
                    raise
                self.drop_rows()
                continue
            self._evict()
            self._account.give(ram=self.page_bytes)

    def write(self, ids: list[int], key: torch.Tensor, value: torch.Tensor, reservation: Reservation) -> None:
        """Store pages; older ones go to disk to make room, written whole before anything is forgotten."""
        self._place = grown(self._place, max(ids) + 1, NOWHERE)
        direct = max(0, len(ids) - reservation.in_ram - self.resident)
        try:
            for number, page in enumerate(ids):
                if number < direct:
                    self._to_disk(page, key[number], value[number])
                    reservation.on_disk -= 1
                    continue
                if not reservation.in_ram:
                    self._evict()
                    reservation.in_ram, reservation.on_disk = 1, reservation.on_disk - 1
                self._keep(page, key[number], value[number])
                reservation.in_ram -= 1
        except REFUSALS as error:
            if is_refusal(error):  # else a page may be half noted: the store is marked
                self.free([page for page in ids if self._place[page] != NOWHERE], reservation)
            raise

    def _keep(self, page: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Put a page ``[H, P, D]``, ``[H, P, DV]`` into RAM that is already taken."""
        free = np.flatnonzero(self._page == NOWHERE)
        slot = int(free[0]) if free.size else len(self._page)
        for table, part in ((self._key, key), (self._value, value)):
            table.use([slot])
            table.tensor[slot] = part
        self._page = grown(self._page, slot + 1, NOWHERE)
        self._page[slot], self._place[page] = page, slot

    def _evict(self) -> None:
        """Move a page to disk, out of RAM that stays taken: slots take turns, so that what came first leaves first."""
        held = np.flatnonzero(self._page != NOWHERE)
        slot = int(held[np.searchsorted(held, self._hand) % len(held)])
        page = self._page.item(slot)
        self._to_disk(page, self._key.tensor[slot], self._value.tensor[slot])
        self._empty(slot)
        self._hand = slot + 1

    def _empty(self, slot: int) -> None:
        self._page[slot] = NOWHERE
        self._page = stripped(self._page, NOWHERE)
        self._key.forget([slot])
        self._value.forget([slot])

    def _to_disk(self, page: int, key: torch.Tensor, value: torch.Tensor) -> None:
        parts = [part.to("cpu", self._shape.dtype).contiguous() for part in (key, value)]
        self._place[page] = _disk(self._file.write(*map(bytes_of, parts)))

    def free(self, ids: list[int], reservation: Reservation | None = None) -> None:
        """Release pages wherever they are (`Arena.free`)."""
        if self._rows_read is not None and self.pages_on_disk(integers(ids)):
            self._rows_read.forget()  # another page may get the place of one of these
        for page in ids:
            place, self._place[page] = self._place.item(page), NOWHERE
            if place == SAVED:
                if reservation is not None:
                    reservation.saved += 1
                continue
            if place < NOWHERE:
                self._file.drop(_disk(place))
                if reservation is not None:
                    reservation.on_disk += 1
                continue
            self._empty(place)
            if reservation is None:
                self._account.give(ram=self.page_bytes)
            else:
                reservation.in_ram += 1
        self._place = stripped(self._place, NOWHERE)
        self._trim()

    def reserve_saved(self, pages: int) -> Reservation:
        """Take nothing (`Arena.reserve_saved`)."""
        return Reservation(saved=pages)

    def adopt(self, ids: list[int], source: ColdPages, reservation: Reservation) -> None:
        """Leave pages where they were saved: they take no room in any tier (`Arena.adopt`)."""
        self._saved = SavedParts(source, self._shape, self._page_tokens, self._counters)
        self._place = grown(self._place, max(ids) + 1, NOWHERE)
        self._place[ids] = SAVED
        reservation.saved -= len(ids)
        self._keep_rows()

    def _in_saved(self, places: NDArray[np.int32]) -> int:
        return int((places == SAVED).sum())

    def bytes_of(self, pages: NDArray[np.int32], reservation: Reservation) -> TierBytes:
        """Count bytes (`Arena.bytes_of`), none of pages that stay where they were saved."""
        whole, saved = Arena.bytes_of(self, pages, reservation), self._in_saved(self._place[pages])
        return whole._replace(disk=whole.disk - saved * self.page_bytes)

    def parts(self, values: bool, pages: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
        """Read parts (`Arena.parts`)."""
        table = self._value if values else self._key
        rows = torch.empty(len(pages), self._page_tokens * table.rows.shape[1], dtype=self._shape.dtype, device="cpu")
        self._read(table, pages, heads, rows)
        return rows

    def pages_on_disk(self, ids: NDArray[np.int32]) -> int:
        """Count the pages that are on disk (`Arena.pages_on_disk`)."""
        return int((self._place[ids] < NOWHERE).sum())

    def _rows(self, name: str, table: Table, places: torch.Tensor) -> torch.Tensor:
        at, size = self._transfer.fetch(places).flatten(), self._shape.heads * self._page_tokens
        rows = self._scratch.take(name, (at.numel(), table.rows.shape[1]), self._shape.dtype, at.device)
        self._read(table, at // size, at % size, rows, self._rows_read)
        return self._transfer.upload(rows.view(*places.shape, rows.shape[1]))

    def tile(self, ids: list[int], heads: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Return whole pages (`Arena.tile`)."""
        numbers, size = torch.arange(self._shape.heads, device="cpu")[heads], self._page_tokens
        pages = torch.tensor(ids, dtype=torch.int64, device="cpu").repeat(len(numbers))
        parts = numbers.repeat_interleave(len(ids))
        tile: list[torch.Tensor] = []
        for table, width in ((self._key, self._shape.key_width), (self._value, self._shape.value_width)):
            rows = torch.empty(pages.numel(), size * width, dtype=self._shape.dtype, device="cpu")
            self._read(table, pages, parts, rows)
            tile.append(rows.view(len(numbers), -1, width))
        return tile[0], tile[1]

    def _read(
        self, table: Table, pages: torch.Tensor, parts: torch.Tensor, rows: torch.Tensor, kept: RowCache | None = None
    ) -> None:
        """Read parts of pages, both int64 ``[K]``, into ``rows [K, numbers of a part]``; `kept` may have some."""
        slots, part, width = self._place[pages.numpy()].astype(np.int64), parts.numpy(), rows.shape[1]
        size, held = width * self._shape.dtype.itemsize, table.tensor.view(-1, width)
        here, missing = np.flatnonzero(slots >= 0), np.flatnonzero(slots < 0)
        at = slots * (table.record_bytes // size) + part
        if not missing.size:
            torch.index_select(held, 0, torch.from_numpy(at), out=rows)
            return
        out = rows.view(torch.uint8).numpy()
        copy_rows(held.view(torch.uint8).numpy(), at[here], out, here, torch.get_num_threads())
        values = table is self._value
        saved = slots[missing] == SAVED
        number = np.where(saved, pages.numpy()[missing], _disk(slots[missing]))
        offsets = self._file.offsets(number, values) + part[missing] * size + saved * BEHIND
        if kept is not None:
            left = kept.take(offsets, out, missing)
            offsets, missing, saved = offsets[left], missing[left], saved[left]
        there = missing[~saved]
        self._file.read(offsets[~saved], there * size, size, bytes_of(rows))
        if self._saved is not None:
            there = missing[saved]
            self._saved.read(values, pages.numpy()[there], part[there], size, out, there)
        if kept is not None:
            kept.keep(offsets, out, missing)


def rows_of_a_step(config: KIVConfig, shape: Shape) -> int:
    """Count the keys and values that a step reads, if every head doubles its candidates (SPEC 4.9)."""
    rows = 0 if config.retrieve_tokens is None else 2 * config.candidate_tokens + config.retrieve_tokens
    return shape.batch * shape.heads * rows


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """View the memory of a contiguous tensor in RAM."""
    return tensor.view(torch.uint8).view(-1).numpy().data


Place = TypeVar("Place", int, NDArray[np.int64])


def _disk(place: Place) -> Place:
    """Turn what is noted of a page on disk into its place there, or the other way round."""
    return NOWHERE - 1 - place
