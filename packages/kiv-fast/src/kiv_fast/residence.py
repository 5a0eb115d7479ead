"""Cold pages in RAM as far as `ram_bytes` goes, and beyond it on disk.

RAM holds two kinds of things: *resident* pages, keys and values, that are nowhere else; and copies of *keys* of pages
on disk, the cache, by (page, head). Residents leave for the disk least recently used first; their keys stay on as cache
while there is room.
"""

from __future__ import annotations

from itertools import islice

import numpy as np
import torch
from kiv_reference.report import TierBytes
from numpy.typing import NDArray

from .host import Table
from .integers import Integers
from .interrupts import REFUSALS, is_refusal
from .layout import IdPool
from .ledger import Account, Counters
from .recency import Links, Order
from .spill import Segments
from .staging import Staging
from .tuning import Tuning
from .validate import Shape

NOWHERE = -1
"""Of what is not in RAM; the place on disk of a page is counted down from below it."""


class Residence:
    """Pages under a RAM budget: where each of them is, and how they move.

    Parameters
    ----------
    shape, page_tokens : of the pages
    segments : Segments
    staging : Staging
        Of the pool.
    """

    def __init__(
        self,
        shape: Shape,
        page_tokens: int,
        ledger: Account,
        counters: Counters,
        segments: Segments,
        tuning: Tuning,
        staging: Staging,
    ) -> None:
        self._tuning, self._staging = tuning, staging
        host = torch.device("cpu")
        self._shape, self._page_tokens = shape, page_tokens
        self._ledger, self._counters, self._segments = ledger, counters, segments
        self._key = Table((page_tokens * shape.key_width,), shape.dtype, host)  # by key slot
        self._value = Table((shape.heads, page_tokens * shape.value_width), shape.dtype, host)  # by value slot
        self._key_slots, self._value_slots = IdPool("B"), IdPool("B")  # of one holder each
        # A page and head is a unit: page * H + head.
        self._value_slot = Integers()  # by page: value slot, or where on disk it is
        self._slot = Integers()  # by unit: key slot, or nowhere
        self._links = Links()  # by unit
        self._cached = Order(self._links, 0)  # units in RAM whose page is on disk
        self._resident = Order(self._links, 1)  # the first units of pages in RAM
        self._promised = self._promised_disk = 0  # pages, in RAM and beyond it

    @property
    def page_bytes(self) -> int:
        """Bytes of one page."""
        return self._shape.token_bytes * self._page_tokens

    def promise(self, pages: int) -> TierBytes:
        """Book RAM for as many of the pages as fit, and room on disk for the others or those that they displace."""
        self._ledger.give(ram=self._promised * self.page_bytes)
        self._promised = self._promised_disk = 0
        room = self._ledger.room(1)
        fit = pages if room is None else min(pages, max(0, room) // self.page_bytes)
        if pages > fit:
            self._segments.ensure(pages - fit)
        elif pages == 0:
            self._segments.trim(0)
        self._ledger.take(ram=fit * self.page_bytes)
        self._promised, self._promised_disk = fit, pages - fit
        return TierBytes(0, fit * self.page_bytes, (pages - fit) * self.page_bytes)

    def give_way(self, nbytes: int) -> None:
        """Copies of keys go first, then residents to disk, but not to where promised pages will go."""
        while (room := self._ledger.room(1)) is not None and room < nbytes:
            if self._cached:
                self._uncache(next(iter(self._cached)))
            elif self._resident:
                self._segments.ensure(self._promised_disk + 1)
                self._spill(next(iter(self._resident)) // self._shape.heads)
            else:
                return

    def _note(self, pages: int) -> None:
        """Have notes for so many page ids."""
        self._value_slot.resize(pages, NOWHERE)
        self._slot.resize(pages * self._shape.heads, NOWHERE)
        self._links.resize(len(self._slot))

    def on_disk(self, page: int) -> bool:
        """Whether a page is on disk."""
        return self._value_slot[page] < NOWHERE

    def write(self, ids: list[int], key: torch.Tensor, value: torch.Tensor) -> None:
        """Store pages; the least recently used go to disk, written whole before anything is forgotten."""
        if len(ids) > self._promised + self._promised_disk:
            self.promise(len(ids))
        self._note(max(max(ids) + 1, len(self._value_slot)))
        spilled = max(0, len(ids) - self._promised)
        old = [unit // self._shape.heads for unit in islice(self._resident, spilled)]
        direct = spilled - len(old)
        for page in old:
            self._spill(page)
            self._promised_disk -= 1
        extra = max(0, len(ids) - direct - self._promised)
        self._make_room(extra)
        try:
            for number in range(direct):
                self._to_disk(ids[number], key[number], value[number])
            for number in range(direct, len(ids)):
                self._keep(ids[number], key[number], value[number])
        except REFUSALS as error:
            if not is_refusal(error):  # a page may be half noted: the store is marked
                raise
            for page in ids:
                if self.on_disk(page):
                    self._drop(page)
                elif self._value_slot[page] != NOWHERE:
                    self._forget(page)
            self._ledger.give(ram=extra * self.page_bytes)
            raise
        self._promised_disk -= direct
        self._promised -= len(ids) - direct - extra

    def _make_room(self, pages: int) -> None:
        """RAM for so many pages beyond the promised ones: what was just spilled left at least that much."""
        need = pages * self.page_bytes
        while need > 0 and (room := self._ledger.room(1)) is not None and room < need:
            self._uncache(next(iter(self._cached)))
        self._ledger.take(ram=need)

    def _keep(self, page: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Put a page ``[H, P, D]``, ``[H, P, DV]`` into RAM that is already booked."""
        heads = self._shape.heads
        slots, (place,) = self._key_slots.take(heads), self._value_slots.take(1)
        try:
            self._key.use(slots)
            self._value.use([place])
            for head, slot in enumerate(slots):
                self._key.tensor[slot] = key[head].reshape(-1)
            self._value.tensor[place] = value.flatten(1)
        except REFUSALS:
            self._key_slots.drop(slots)
            self._value_slots.drop([place])
            raise
        self._value_slot[page] = place
        self._resident.append(page * heads)
        for head, slot in enumerate(slots):
            self._slot[page * heads + head] = slot

    def _forget(self, page: int) -> None:
        """Take a resident page out of RAM that stays booked."""
        heads = self._shape.heads
        slots, place = self._slot.tolist(page * heads, (page + 1) * heads), self._value_slot[page]
        self._slot.array[page * heads : (page + 1) * heads] = NOWHERE
        self._value_slot[page] = NOWHERE
        self._resident.remove(page * heads)
        self._key_slots.drop(slots)
        self._value_slots.drop([place])
        self._value.forget([place])
        self._key.forget(slots)

    def _to_disk(self, page: int, key: torch.Tensor, value: torch.Tensor) -> None:
        heads = self._shape.heads
        buffers: list[memoryview] = []
        for name, part in (("outgoing keys", key), ("outgoing values", value)):
            flat = part.reshape(heads, -1)
            rows, bytes_ = self._staging.rows(name, heads, flat.shape[1], self._shape.dtype)
            rows.copy_(flat)
            buffers.append(bytes_)
        self._value_slot[page] = NOWHERE - 1 - self._segments.write(*buffers)

    def _drop(self, page: int) -> None:
        """Take a page off the disk."""
        self._segments.drop(self._on_disk(self._value_slot[page]))
        self._value_slot[page] = NOWHERE

    def _on_disk(self, noted: int) -> int:
        """The place on disk that is noted for a page."""
        return NOWHERE - 1 - noted

    def _spill(self, page: int) -> None:
        """Move a resident page to disk; its keys stay as cache, its values leave RAM."""
        heads = self._shape.heads
        slots, slot = self._slot.tolist(page * heads, (page + 1) * heads), self._value_slot[page]
        self._to_disk(page, self._key.tensor[slots], self._value.tensor[slot])
        self._resident.remove(page * heads)
        self._value_slots.drop([slot])
        self._value.forget([slot])
        self._ledger.give(ram=self._value.record_bytes)
        for head in range(heads):
            self._cached.append(page * heads + head)

    def _uncache(self, unit: int) -> None:
        """Drop a copy of keys."""
        self._cached.remove(unit)
        slot, self._slot[unit] = self._slot[unit], NOWHERE
        self._key_slots.drop([slot])
        self._key.forget([slot])
        self._ledger.give(ram=self._key.record_bytes)
        self._counters.cache_evictions += 1

    def free(self, ids: list[int]) -> None:
        """Release pages wherever they are."""
        heads = self._shape.heads
        for page in ids:
            if self.on_disk(page):
                self._drop(page)
                for unit in range(page * heads, (page + 1) * heads):
                    if self._slot[unit] != NOWHERE:
                        self._uncache(unit)
                continue
            self._forget(page)
            self._ledger.give(ram=self.page_bytes)
        self._value_slot.strip(NOWHERE)
        self._note(len(self._value_slot))
        self._segments.trim(self._promised_disk)

    def touch(self, units: list[int], missing: list[int], rows: torch.Tensor) -> None:
        """Note what was used, and keep what had to be read."""
        heads = self._shape.heads
        slots, value_slots = self._slots(units)
        for unit, slot, value_slot in zip(units, slots, value_slots, strict=True):
            if value_slot >= 0:
                self._resident.move_to_end(unit // heads * heads)
            elif slot >= 0:
                self._cached.move_to_end(unit)
                self._counters.cache_hits += 1
        self._counters.cache_misses += len(missing)
        used = set(units)
        if missing:
            self._convert()
        size = self._key.record_bytes
        for at in missing:
            unit = units[at]
            room = self._ledger.room(1)
            if room is not None and room < size:
                oldest = next(iter(self._cached), None)
                if oldest is None or oldest in used:
                    return
                self._uncache(oldest)
            if self._slot[unit] != NOWHERE:
                continue
            (slot,) = self._key_slots.take(1)
            try:
                self._key.use([slot])
                self._key.tensor[slot] = rows[at]
                self._ledger.take(ram=size)
            except REFUSALS:
                self._key_slots.drop([slot])
                raise
            self._slot[unit] = slot
            self._cached.append(unit)

    def _convert(self) -> None:
        """Move a few residents to disk while the cache has less than its share of the RAM."""
        for _ in range(self._tuning.convert_pages):
            cache = len(self._cached) * self._key.record_bytes
            held = cache + len(self._resident) * self.page_bytes
            spare = self._segments.free - self._promised_disk
            if not self._resident or spare <= 0 or cache * self._tuning.cache_share >= held:
                return
            self._spill(next(iter(self._resident)) // self._shape.heads)

    def _slots(self, units: list[int]) -> tuple[list[int], list[int]]:
        """Key slots of units, and value slots of their pages; below 0 where they are not in RAM."""
        at = np.array(units, np.int64)
        return self._slot.array[at].tolist(), self._value_slot.array[at // self._shape.heads].tolist()

    def pages_on_disk(self, ids: NDArray[np.int32]) -> int:
        """How many of the pages are on disk."""
        return int((self._value_slot.array[ids] < NOWHERE).sum())
