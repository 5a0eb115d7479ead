"""Cold pages in RAM as far as `ram_bytes` goes, and beyond it on disk: those that came first leave for it first."""

from __future__ import annotations

import numpy as np
import torch
from kiv_reference.report import TierBytes
from numpy.typing import NDArray

from ..interrupts import REFUSALS, is_refusal
from ..memory.growable_table import Table
from ..memory.ledger import Account
from ..pages.block_table import IdPool
from ..pages.integers import Integers
from ..pages.recency import Order
from ..shape import Shape
from .segments import Segments
from .staging import Staging

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

    def __init__(self, shape: Shape, page_tokens: int, ledger: Account, segments: Segments, staging: Staging) -> None:
        host = torch.device("cpu")
        self._shape, self._page_tokens = shape, page_tokens
        self._ledger, self._segments, self._staging = ledger, segments, staging
        self._key = Table((shape.heads, page_tokens * shape.key_width), shape.dtype, host)  # by slot
        self._value = Table((shape.heads, page_tokens * shape.value_width), shape.dtype, host)
        self._slots = IdPool("B")  # of one holder each
        self._place = Integers()  # by page: its slot, or where on disk it is
        self._resident = Order()
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
        """Residents go to disk, but not to where promised pages will go."""
        while (room := self._ledger.room(1)) is not None and room < nbytes and self._resident:
            self._segments.ensure(self._promised_disk + 1)
            self._spill(next(iter(self._resident)))
            self._ledger.give(ram=self.page_bytes)

    def _note(self, pages: int) -> None:
        """Have notes for so many page ids."""
        self._place.resize(pages, NOWHERE)
        self._resident.resize(pages)

    def on_disk(self, page: int) -> bool:
        """Whether a page is on disk."""
        return self._place[page] < NOWHERE

    def write(self, ids: list[int], key: torch.Tensor, value: torch.Tensor) -> None:
        """Store pages; older ones go to disk to make room, written whole before anything is forgotten."""
        if len(ids) > self._promised + self._promised_disk:
            self.promise(len(ids))
        self._note(max(max(ids) + 1, len(self._place)))
        displaced = min(len(self._resident), max(0, len(ids) - self._promised))
        direct = max(0, len(ids) - self._promised - displaced)
        try:
            for number, page in enumerate(ids):
                if number < direct:
                    self._to_disk(page, key[number], value[number])
                    self._promised_disk -= 1
                    continue
                if not self._promised:
                    self._spill(next(iter(self._resident)))
                    self._promised, self._promised_disk = 1, self._promised_disk - 1
                self._keep(page, key[number], value[number])
                self._promised -= 1
        except REFUSALS as error:
            if not is_refusal(error):  # a page may be half noted: the store is marked
                raise
            for page in ids:
                if self.on_disk(page):
                    self._drop(page)
                    self._promised_disk += 1
                elif self._place[page] != NOWHERE:
                    self._forget(page)
                    self._promised += 1
            raise

    def _keep(self, page: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Put a page ``[H, P, D]``, ``[H, P, DV]`` into RAM that is already booked."""
        (slot,) = self._slots.take(1)
        try:
            for table, part in ((self._key, key), (self._value, value)):
                table.use([slot])
                table.tensor[slot] = part.flatten(1)
        except REFUSALS:
            self._slots.drop([slot])
            raise
        self._place[page] = slot
        self._resident.append(page)

    def _forget(self, page: int) -> None:
        """Take a resident page out of RAM that stays booked."""
        slot, self._place[page] = self._place[page], NOWHERE
        self._leave(page, slot)

    def _leave(self, page: int, slot: int) -> None:
        self._resident.remove(page)
        self._slots.drop([slot])
        self._key.forget([slot])
        self._value.forget([slot])

    def _to_disk(self, page: int, key: torch.Tensor, value: torch.Tensor) -> None:
        heads = self._shape.heads
        buffers: list[memoryview] = []
        for name, part in (("outgoing keys", key), ("outgoing values", value)):
            flat = part.reshape(heads, -1)
            rows, bytes_ = self._staging.rows(name, heads, flat.shape[1], self._shape.dtype)
            rows.copy_(flat)
            buffers.append(bytes_)
        self._place[page] = NOWHERE - 1 - self._segments.write(*buffers)

    def _drop(self, page: int) -> None:
        """Take a page off the disk."""
        self._segments.drop(self._on_disk(self._place[page]))
        self._place[page] = NOWHERE

    def _on_disk(self, noted: int) -> int:
        """The place on disk that is noted for a page."""
        return NOWHERE - 1 - noted

    def _spill(self, page: int) -> None:
        """Move a resident page to disk, out of RAM that stays booked."""
        slot = self._place[page]
        self._to_disk(page, self._key.tensor[slot], self._value.tensor[slot])
        self._leave(page, slot)

    def free(self, ids: list[int]) -> None:
        """Release pages wherever they are."""
        for page in ids:
            if self.on_disk(page):
                self._drop(page)
            else:
                self._forget(page)
                self._ledger.give(ram=self.page_bytes)
        self._place.strip(NOWHERE)
        self._note(len(self._place))
        self._segments.trim(self._promised_disk)

    def pages_on_disk(self, ids: NDArray[np.int32]) -> int:
        """How many of the pages are on disk."""
        return int((self._place.array[ids] < NOWHERE).sum())
