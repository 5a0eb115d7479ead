"""The cold pages of a store and of its forks: page tables, arena and index kept in step."""

from __future__ import annotations

from functools import partial
from typing import cast

import numpy as np
import torch
from kiv_reference.report import TierBytes

from .device.flags import Flags
from .device.kept import KeptRows, aside_bytes, sets_for
from .index.index import Index, code_pages
from .interrupts import REFUSALS, is_refusal
from .memory.ledger import Reservation
from .ops.arguments import Rows
from .ops.page_index import PageIndex
from .pages.block_table import BlockTable, IdPool
from .shape import Shape
from .tiers.arena import Arena
from .tiers.ram import RamArena
from .tiers.resources import Resources
from .tiers.tiered import TieredArena

TABLE_BYTES = 18
"""Of what is noted about a page, in RAM: in the table of a row two integers of four bytes, its holders, and a flag in
each of six tables that hold it."""


class Cold:
    """Shared by a store and its forks; every page has one holder for each row that it is in.

    Attributes
    ----------
    index : Index, or None in exact mode
    ahead : Ahead, or None on a CPU
    kept : KeptRows, or None
        Rows that the device keeps, where a step can look them up.
    together : bool
        Whether query blocks, and sequences, are answered in the same launches.
    """

    def __init__(self, shape: Shape, resources: Resources) -> None:
        self.shape, self.config, self.tuning = shape, resources.config, resources.tuning
        self.account, self.counters, self.scratch = resources.account, resources.counters, resources.scratch
        self._gather, self._pinning = resources.gather, resources.pinning
        self.transfer, self.ahead = resources.gather.transfer, resources.ahead
        self.ops, self.decoder = resources.ops.of(shape), resources.ops.decoder_of(shape)
        self.together = self.tuning.together(shape.device) > 0 and not self.ops.in_place
        self.arena: Arena = (RamArena if self.config.ram_bytes is None else TieredArena)(shape, resources)
        self.index = None if self.config.exact else Index(shape, self.config, self.transfer)
        # Where a head's tokens begin in a page, [H, 1].
        self._begin = torch.arange(shape.heads, device=shape.device)[:, None] * self.config.page_tokens
        self._pages = IdPool()
        # Of consecutive pages without padding, by the first id and their number.
        self._indexes: dict[tuple[int, int], PageIndex] = {}
        self._stores, self.aside = resources.stores, resources.aside
        self.kept: KeptRows | None = None

    def flags(self) -> Flags | None:
        """Make what tells a store of odd keys, values and queries; None where operations tell it themselves."""
        return None if self.decoder is None else Flags(3, self._gather, self._pinning, self.shape.device)

    def reserve(self, pages: int, saved: bool = False) -> Reservation:
        """Take room for n pages to come, in all tiers (SPEC 10.2); `saved` if they can be read where they were saved.

        Raises
        ------
        KIVBudgetError, KIVStorageError
            If they do not fit. Nothing is taken then.
        """
        if not pages:
            return Reservation()
        more = self._bytes(pages)
        self.arena.make_room(more.ram)
        self.account.take(more.device, more.ram)
        try:
            return self.arena.reserve_saved(pages) if saved else self.arena.reserve(pages)
        except REFUSALS:
            self.account.give(more.device, more.ram)
            raise

    def release(self, reservation: Reservation) -> None:
        """Give back what of a reservation was not used."""
        if reservation.pages:
            less = self._bytes(reservation.pages)
            self.account.give(less.device, less.ram)
        self.arena.release(reservation)

    def keep_rows(self, batch: int) -> None:
        """Let the device keep rows for so many sequences, with this store's share of the room that is left."""
        if self.kept is not None and self.kept.lanes >= batch * self.shape.heads:
            return
        if self.decoder is not None and self.arena.table(False) is not None:
            with self.account.changing():
                self._make_kept(batch)

    def _make_kept(self, batch: int) -> None:
        """Make room for rows in place of what was kept, if there is any."""
        self.drop_kept()
        shape, room = self.shape._replace(batch=batch), self.account.room(0)
        planned = self.aside.planned(shape.device)
        aside = max(planned, aside_bytes(shape, self.config))
        share = None if room is None else max(0, room - aside + planned) // self._stores()
        sets = sets_for(shape, self.config, self.tuning, share)
        if sets is None:
            return
        self.aside.plan(aside, shape.device)
        self.account.take(device=sets.bytes_of(shape))
        try:
            self.kept = KeptRows(shape, sets, self.transfer)
        except REFUSALS as error:
            self.account.give(device=sets.bytes_of(shape))
            if not is_refusal(error):
                raise

    def drop_kept(self) -> None:
        """Free what the device keeps, which only makes steps faster."""
        if self.kept is not None:
            self.account.give(device=self.kept.nbytes)
            self.kept = None

    def add(
        self,
        row: BlockTable,
        key: torch.Tensor,
        value: torch.Tensor,
        valid: torch.Tensor | None,
        weights: torch.Tensor | None,
        reservation: Reservation,
    ) -> None:
        """Add pages to a row, or raise and add none.

        Parameters
        ----------
        key : [n, H, P, D]
        value : [n, H, P, DV]
        valid : bool [n, P], or None if all are
        weights : [n, H, D], in RAM
            Of the index; None where there is none.
        reservation : Reservation
            Room for them.
        """
        self._indexes.clear()  # what it views may be copied now, to grow
        n, size = key.shape[0], self.config.page_tokens
        ids = self._pages.take(n)
        try:
            self.arena.write(ids, key, value, reservation)
        except REFUSALS:
            self._pages.drop(ids)
            raise
        try:
            finite = weights is None or self._code(ids, key, value, valid, weights)
            counts = [size] * n if valid is None else cast("list[int]", valid.sum(dim=1).tolist())
        except REFUSALS:
            self.let_go(ids, reservation)
            raise
        row.extend(ids, counts, size, finite)

    def _code(
        self, ids: list[int], key: torch.Tensor, value: torch.Tensor, valid: torch.Tensor | None, weights: torch.Tensor
    ) -> bool:
        """Make the index of new pages; returns whether their mean values are all numbers."""
        assert self.index is not None, "exact mode has no weights"
        finite, step = True, max(1, self.tuning.index_tokens // self.config.page_tokens)
        for start in range(0, len(ids), step):
            part = slice(start, start + step)
            seen = None if valid is None else valid[part]
            coded = code_pages(key[part], value[part], seen, self.transfer.send(weights[part]), self.index.coded)
            self.index.put(ids[part], coded)
            finite = finite and bool(torch.isfinite(coded.value).all())
        return finite

    def take(self, pages: int) -> list[int]:
        """Take ids for n pages, each with one holder."""
        self._indexes.clear()
        return self._pages.take(pages)

    def hold(self, ids: list[int]) -> None:
        """Add a holder to each of these pages."""
        self._pages.share(ids)

    def drop(self, ids: list[int]) -> None:
        """Give back ids that were taken for pages which did not come."""
        self._pages.drop(ids)

    def share(self, row: BlockTable) -> BlockTable:
        """Make a second row with the same pages."""
        copy = row.copy()
        self._pages.share(copy.pages)
        return copy

    def cut(self, row: BlockTable, pages: int, reservation: Reservation | None = None) -> None:
        """Keep the first `pages` pages of a row; the room of the others is given back, or goes to a reservation.

        It asks for no memory.
        """
        self.let_go(row.cut(pages, self.config.page_tokens), reservation)

    def let_go(self, ids: list[int], reservation: Reservation | None = None) -> None:
        """Take a holder from each of these pages."""
        freed = self._pages.drop(ids)
        if not self._pages.used:
            self.drop_kept()
        elif freed and self.kept is not None:
            self.kept.empty()
        self.arena.free(freed, reservation)
        if self.index is not None:
            self.index.forget(freed)
        if reservation is None:
            less = self._bytes(len(freed))
            self.account.give(less.device, less.ram)

    def _bytes(self, pages: int) -> TierBytes:
        """Count the bytes of the index of n pages and of what is noted about them."""
        device, ram = (0, 0) if self.index is None else (self.index.device_bytes, self.index.ram_bytes)
        return TierBytes(pages * device, pages * (ram + TABLE_BYTES), 0)

    def memory(self, rows: list[BlockTable], reservation: Reservation) -> list[TierBytes]:
        """Count the bytes of the pages of rows, and of those to come."""
        pages = np.concatenate([row.pages for row in rows])
        kept = TierBytes(0 if self.kept is None else self.kept.nbytes, 0, 0)
        return [self._bytes(len(pages) + reservation.pages), self.arena.bytes_of(pages, reservation), kept]

    @property
    def index_bytes(self) -> int:
        """Device bytes of the index of all pages."""
        return self._bytes(self._pages.used).device

    def places(
        self, row: BlockTable, at: torch.Tensor, heads: torch.Tensor | None = None, blocks: int = 1
    ) -> torch.Tensor:
        """Find where cold tokens int64 ``[n, K]``, of all heads or of those int64 ``[n]``, are in the arena.

        Where several blocks, or the sequences of a table, are answered together, these are as many heads (`Queries`).
        """
        size, begin, sequences = self.config.page_tokens, self._begin, row.sequences
        if sequences * blocks > 1:
            begin = begin.repeat_interleave(blocks, dim=0).repeat(sequences, 1)
        if sequences > 1:
            tokens = len(row.pages) // sequences * size  # of each before the next one's
            first = torch.arange(0, sequences * tokens, tokens, device=at.device)
            first = first.repeat_interleave(len(begin) // sequences)[:, None]
            at = at + (first if heads is None else first[heads])
        begin = begin if heads is None else begin[heads]
        page = at // size
        if row.whole and row.whole == len(row.pages):
            # Up to a token's page lie, beside the head's own tokens, those of the other heads.
            first, others = row.pages.item(0), self.shape.heads - 1
            places = torch.add(at, page, alpha=others * size).add_(begin)
            return places.add_(first * self.shape.heads * size) if first else places
        ids = self.transfer.upload(torch.from_numpy(row.pages))[page].long()
        return (at % size).add_(begin).add_(ids, alpha=self.shape.heads * size)

    def page_index(self, row: BlockTable, pages: int, unseen: torch.Tensor | None) -> PageIndex:
        """Return the index of the first `pages` pages of a row, of whose tokens `unseen` are not valid.

        Of a table of several sequences, all pages.
        """
        assert self.index is not None, "exact mode has no index"
        key = (row.pages.item(0), pages) if row.whole >= pages > 0 and unseen is None else None
        known = None if key is None else self._indexes.get(key)
        if known is not None:
            return known
        index = PageIndex(
            *self.index.tables,
            row.pages[: row.sequences * pages],
            row.whole >= pages,
            self.index.all_coded,
            pages,
            self.config.page_tokens,
            pages * self.config.page_tokens,
            unseen,
            self.config.group,
            self.transfer,
            row.sequences,
        )
        if key is not None:
            self._indexes[key] = index
        return index

    def rows(self, row: BlockTable, values: bool, blocks: int = 1) -> Rows:
        """Return the keys or values of the cold tokens of a row, for as many blocks at once."""
        arena = self.arena

        def places(at: torch.Tensor, heads: torch.Tensor | None) -> torch.Tensor:
            return self.places(row, at, heads, blocks)

        read = arena.values if values else arena.keys
        if not self.ops.in_place:
            return Rows(places, read, None)
        return Rows(places, read, arena.table(values), partial(arena.bring, values) if arena.absent else None)
