"""The cold pages of a store and of its forks: page tables, arena and index kept in step."""

from __future__ import annotations

import torch
from kiv_reference.config import KIVConfig
from kiv_reference.report import TierBytes

from .device.transfer import Transfer
from .index.index import Index, code_pages
from .interrupts import REFUSALS
from .memory.ledger import NOTHING, Account, Booking, Counters
from .memory.scratch import Scratch
from .ops import Ops
from .ops.arguments import PageIndex, Rows
from .pages.block_table import IdPool, Row
from .shape import Shape
from .tiers.tiered import Arena
from .tuning import Tuning

TABLE_BYTES = 18
"""Of what is noted about a page, in RAM: in the table of a row two integers of four bytes, its holders, and a flag in
each of six tables that hold it."""


class Cold:
    """Shared by a store and its forks; every page has one holder for each row that it is in.

    Attributes
    ----------
    index : Index, or None in exact mode
    """

    def __init__(
        self,
        shape: Shape,
        config: KIVConfig,
        arena: Arena,
        scratch: Scratch,
        account: Account,
        counters: Counters,
        transfer: Transfer,
        tuning: Tuning,
        ops: Ops,
    ) -> None:
        self.shape, self.config, self.arena, self.scratch = shape, config, arena, scratch
        self.account, self.counters, self.transfer, self.tuning, self.ops = account, counters, transfer, tuning, ops
        self.index = None if config.exact else Index(shape, config, transfer)
        self._heads = torch.arange(shape.heads, device=shape.device)
        self._booking = Booking(account)
        self._pages = IdPool()
        self._promises: dict[object, int] = {}  # pages, by owner

    def promise(self, owner: object, pages: int) -> TierBytes:
        """Book room for so many pages more, or refuse before anything happens (SPEC 10.2).

        A promise stands until its owner, one of the states that share the pages, settles it or gets another.
        Returns what was booked.
        """
        self.settle(owner)
        if not pages:
            return NOTHING
        others = self._promised_pages
        due = self._bytes(self._pages.used + others + pages)
        before = self.arena.promise(others)
        try:
            self.arena.give_way(due.ram - self._booking.held.ram)
            self._booking.book(due)
            after = self.arena.promise(others + pages)
        except REFUSALS:
            self.settle(owner)
            raise
        self._promises[owner] = pages
        more = self._bytes(pages)
        return TierBytes(more.device, more.ram + after.ram - before.ram, after.disk - before.disk)

    def settle(self, owner: object) -> None:
        """End a promise: book what is held, and what others were promised."""
        self._promises.pop(owner, None)
        self.renew()
        self._booking.book(self._bytes(self._pages.used + self._promised_pages))

    def renew(self) -> None:
        """Book the room of promises again, some of which was taken for pages that were given back."""
        self.arena.promise(self._promised_pages)

    @property
    def _promised_pages(self) -> int:
        return sum(self._promises.values())

    def add(
        self, row: Row, key: torch.Tensor, value: torch.Tensor, valid: torch.Tensor | None, weights: torch.Tensor | None
    ) -> None:
        """Add pages to a row.

        Parameters
        ----------
        key : [n, H, P, D]
        value : [n, H, P, DV]
        valid : bool [n, P], or None if all are
        weights : [n, H, D], in RAM
            Of the index; None where there is none.
        """
        n, size = key.shape[0], self.config.page_tokens
        ids = self._pages.take(n)
        try:
            self.arena.write(ids, key, value)
        except REFUSALS:
            self._pages.drop(ids)
            raise
        try:
            finite = weights is None or self._code(ids, key, value, valid, weights)
            counts: list[int] = [size] * n if valid is None else valid.sum(dim=1).tolist()
        except REFUSALS:
            self._free(ids)
            raise
        row.extend(ids, counts, size, finite)
        self.counters.evicted_pages += n

    def _code(
        self, ids: list[int], key: torch.Tensor, value: torch.Tensor, valid: torch.Tensor | None, weights: torch.Tensor
    ) -> bool:
        """Make the index of new pages; whether their mean values are all numbers."""
        assert self.index is not None, "exact mode has no weights"
        finite, step = True, max(1, self.tuning.index_tokens // self.config.page_tokens)
        for start in range(0, len(ids), step):
            part = slice(start, start + step)
            seen = None if valid is None else valid[part]
            coded = code_pages(key[part], value[part], seen, self.transfer.send(weights[part]), self.index.coded)
            self.index.put(ids[part], coded)
            finite = finite and bool(torch.isfinite(coded.value).all())
        return finite

    def share(self, row: Row) -> Row:
        """A second row with the same pages."""
        copy = row.copy()
        self._pages.share(copy.pages)
        return copy

    def cut(self, row: Row, pages: int) -> None:
        """Keep the first `pages` pages of a row. It asks for no memory."""
        self._free(row.cut(pages, self.config.page_tokens))
        # Only lowered, which is never refused: a call that failed may hold what it was promised beside the promise.
        due, held = self._bytes(self._pages.used + self._promised_pages), self._booking.held
        self._booking.book(TierBytes(min(due.device, held.device), min(due.ram, held.ram), 0))

    def _free(self, ids: list[int]) -> None:
        """One holder of pages less."""
        freed = self._pages.drop(ids)
        self.arena.free(freed)
        if self.index is not None:
            self.index.forget(freed)

    def _bytes(self, pages: int) -> TierBytes:
        device, ram = (0, 0) if self.index is None else (self.index.device_bytes, self.index.ram_bytes)
        return TierBytes(pages * device, pages * (ram + TABLE_BYTES), 0)

    def row_bytes(self, row: Row) -> TierBytes:
        """Bytes of what a row refers to, without the pages themselves."""
        return self._bytes(len(row.pages))

    @property
    def index_bytes(self) -> int:
        """Device bytes of the index of all pages."""
        return self._bytes(self._pages.used).device

    def page_ids(self, row: Row, pages: torch.Tensor) -> torch.Tensor:
        """Ids of pages of a row, int64 of any shape, both on the device."""
        if row.pages and row.whole == len(row.pages):
            return pages + row.pages[0]
        return self.transfer.upload(torch.from_numpy(row.pages.array))[pages].long()

    def places(
        self, row: Row, at: torch.Tensor, heads: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Where an arena has cold tokens ``[n, K]`` of all heads, or of those int64 ``[n]``: page ids and offsets."""
        size, heads = self.config.page_tokens, self._heads if heads is None else heads
        return self.page_ids(row, at // size), at % size + size * heads[:, None]

    def page_index(self, row: Row, pages: int, unseen: torch.Tensor | None) -> PageIndex:
        """Return the index of the first `pages` pages of a row, of whose tokens `unseen` are not valid."""
        assert self.index is not None, "exact mode has no index"
        return PageIndex(
            *self.index.tables,
            row.pages.array[:pages],
            row.whole >= pages,
            self.config.page_tokens,
            unseen,
            self.config.group,
            self.transfer,
        )

    def rows(self, row: Row, values: bool) -> Rows:
        """Return the keys or values of the cold tokens of a row."""
        arena = self.arena

        def gather(at: torch.Tensor, heads: torch.Tensor | None) -> torch.Tensor:
            places = self.places(row, at, heads)
            return arena.values(*places) if values else arena.keys(*places)

        return Rows(gather, arena.table(values) if self.ops.in_place else None)
