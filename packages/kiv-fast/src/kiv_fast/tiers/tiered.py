"""Cold pages in RAM as far as `ram_bytes` goes, and beyond it on disk: those that came first are evicted first."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ..interrupts import REFUSALS, is_refusal
from ..memory.growable_table import Table
from ..memory.ledger import Reservation
from ..pages.block_table import grown, integers, stripped
from ..shape import Shape
from .arena import Arena
from .page_file import PageFile
from .resources import Resources

NOWHERE = -1
"""Of a page that is not stored, and of a slot that is free. Places on disk are counted down from below it."""


class TieredArena(Arena):
    """Pages under a RAM budget. The host must know which pages a step reads."""

    def __init__(self, shape: Shape, resources: Resources) -> None:
        super().__init__(shape, resources, None, huge=False)
        self._scratch, self._transfer = resources.scratch, resources.gather.transfer
        self._file = PageFile(shape, resources)
        self._place = integers()  # by page: its slot in RAM, or where on disk it is
        self._page = integers()  # by slot
        self._hand = 0  # the slot from which on the next page to be evicted is sought
        self._reservations: list[Reservation] = []

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
            self._file.ensure(self._reserved_on_disk + pages - in_ram)
        self._account.take(ram=in_ram * self.page_bytes)
        reservation = Reservation(in_ram, pages - in_ram)
        self._reservations.append(reservation)
        return reservation

    def release(self, reservation: Reservation) -> None:
        """Give back the places that were not used."""
        super().release(reservation)
        if reservation in self._reservations:
            self._reservations.remove(reservation)
        self._file.trim(self._reserved_on_disk)

    def make_room(self, nbytes: int) -> None:
        """Evict pages, but not to places that are reserved (`Arena.make_room`)."""
        while (room := self._account.room(1)) is not None and room < nbytes and self.resident:
            self._file.ensure(self._reserved_on_disk + 1)
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
        for page in ids:
            place, self._place[page] = self._place.item(page), NOWHERE
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
        self._file.trim(self._reserved_on_disk)

    def pages_on_disk(self, ids: NDArray[np.int32]) -> int:
        """Count the pages that are on disk (`Arena.pages_on_disk`)."""
        return int((self._place[ids] < NOWHERE).sum())

    def _rows(self, name: str, table: Table, width: int, ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        pages, tokens = self._transfer.fetch(torch.stack([ids, offsets])).unbind()
        rows = self._scratch.take(name, (ids.numel(), width), self._shape.dtype, pages.device)
        self._read(table, pages.flatten(), tokens.flatten(), rows)
        return self._transfer.upload(rows.view(*ids.shape, width))

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

    def _read(self, table: Table, pages: torch.Tensor, parts: torch.Tensor, rows: torch.Tensor) -> None:
        """Read parts of pages, both int64 ``[K]``, into ``rows [K, numbers of a part]``."""
        slots, width = self._place[pages.numpy()].astype(np.int64), rows.shape[1]
        size = width * self._shape.dtype.itemsize
        at_slots = torch.from_numpy(slots).clamp(min=0) * (table.record_bytes // size) + parts
        torch.index_select(table.tensor.view(-1, width), 0, at_slots, out=rows)
        missing = np.flatnonzero(slots < 0)
        if missing.size:
            offsets = self._file.offsets(_disk(slots[missing]), table is self._value)
            self._file.read(offsets + parts.numpy()[missing] * size, missing * size, size, bytes_of(rows))


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """View the memory of a contiguous tensor in RAM."""
    return tensor.view(torch.uint8).view(-1).numpy().data


Place = TypeVar("Place", int, NDArray[np.int64])


def _disk(place: Place) -> Place:
    """Turn what is noted of a page on disk into its place there, or the other way round."""
    return NOWHERE - 1 - place
