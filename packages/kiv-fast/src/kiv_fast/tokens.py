"""What a store holds, and how it is read: sinks, cold pages and hot tokens as tiles (SPEC 2.2, 10.3)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from kiv_reference.config import KIVConfig
from kiv_reference.report import TierBytes, TierTokens

from .cold import Cold
from .device.ahead import HostTile
from .device.lengths import Lengths
from .index.samples import Samples
from .memory.ledger import Holding, Reservation
from .memory.scratch import tile_pages
from .ops.arguments import PagedTile, Tile
from .ops.decoding import page_room
from .pages.block_table import BlockTable, Integers
from .pages.validity import Validity
from .shape import Shape
from .tiers.window import Recent

ALL = slice(None)
"""Every KV head."""

ID_BYTES = 4
"""Of the id of a page."""


class Tokens:
    """The tokens of one store. Rows share pages; recent tokens are each store's own.

    Attributes
    ----------
    tile_pages : int
        Pages of a tile.
    pages : int
        Cold pages of each row that have left the hot window.
    finite : bool
        Whether every value is a number.
    held : Holding
        Bytes of sinks, hot tokens and validity, on the device, and of sampled queries, in RAM.
    reservation : Reservation
        Room for the pages that the last append makes cold, until they are.
    """

    def __init__(self, shape: Shape, config: KIVConfig, cold: Cold) -> None:
        self.shape, self.config, self.cold = shape, config, cold
        self.rows = [BlockTable() for _ in range(shape.batch)]
        self.recent = Recent(shape, config, ring=cold.decoder is not None)
        self.validity = Validity(shape.batch, shape.device)
        self.samples = Samples(shape)
        self.length: int = 0
        self.pages: int = 0
        self.tile_pages = tile_pages(shape, config, cold.tuning)
        self.finite = True
        # Of all pages, on the device, and what they were made of; then how many tokens there are.
        self._ids: tuple[list[Integers], torch.Tensor] | None = None
        self.decoder = None if cold.decoder is None else cold.decoder.another()
        self.lengths = None if cold.decoder is None else Lengths(cold.transfer, shape.device)
        # What the device tells of the last token, and whether that is not known yet.
        self.flags, self.unsettled = cold.flags(), False
        self.held, self.reservation = Holding(cold.account), Reservation()

    def ids_bytes(self, pages: int) -> int:
        """Count the bytes of page ids and counts on the device, for a decode step of all sequences."""
        if self.lengths is None:
            return 0
        return ID_BYTES * len(self.rows) * page_room(pages) + self.lengths.words.nbytes

    def page_ids(self) -> torch.Tensor:
        """Return the ids of all pages, int32 ``[B, room]`` on the device: in the same place until there is no room."""
        tables = [row.pages for row in self.rows]
        known, shape = self._ids, (len(tables), page_room(self.pages))
        if known is not None and all(mine is row for mine, row in zip(known[0], tables, strict=True)):
            return known[1]
        ids = known[1] if known is not None and known[1].shape == shape else None
        if ids is None:  # what is not written is not read
            ids = torch.full(shape, -1, dtype=torch.int32, device=self.shape.device)
        self._ids = None
        ids[:, : self.pages] = self.cold.transfer.upload(torch.from_numpy(np.stack(tables)))
        self._ids = tables, ids
        return ids

    def hot_start(self, pages: int) -> int:
        """Return the first hot position when `pages` pages are cold."""
        return self.config.sink_tokens + pages * self.config.page_tokens

    def tiles(self, row: int, pages: int, stop: int) -> list[Tile]:
        """View or read the sinks and, from the page `pages` on, everything before position `stop`.

        The tiles depend on positions alone, not on where the tokens are by now: repeated calls give the same bits.
        """
        sinks, start = min(self.recent.sink_count, stop), self.hot_start(pages)
        tiles = [self.recent.sinks(row, sinks, self.validity.row(row, 0, sinks))] if sinks else []
        step = self.tile_pages * self.config.page_tokens
        while start < stop:
            tiles.append(self._tile(row, start, min(start + step, stop)))
            start += step
        return tiles

    def _tile(self, row: int, start: int, stop: int) -> Tile:
        """Read tokens ``[start, stop)`` from the beginning of a page on, wherever they are."""
        border, valid = self.hot_start(self.pages), self.validity.row(row, start, stop)
        if start >= border:
            return self.recent.hot(row, start - border, stop - border, start, valid)
        size = self.config.page_tokens
        first = (start - self.config.sink_tokens) // size
        last = min(self.pages, first - (start - stop) // size)
        cold = self.cold_tile(row, first, last)
        # A copy, since the arena may use the memory of a tile again for the next one.
        key, value = (part[:, : stop - start].clone() for part in (cold.key, cold.value))
        if stop > border:
            hot = self.recent.hot(row, 0, stop - border, border, None)
            key, value = torch.cat([key, hot.key], dim=1), torch.cat([value, hot.value], dim=1)
        return Tile(key[None], value[None], row=0, start=0, count=stop - start, first=start, valid=valid)

    def cold_tiles(self, row: int, pages: int, heads: slice) -> Iterator[Tile]:
        """Read what some KV heads have in the first `pages` pages of a sequence.

        On a device a tile is overwritten once the next one is asked for.
        """
        spans = [(first, min(first + self.tile_pages, pages)) for first in range(0, pages, self.tile_pages)]
        if self.cold.ahead is None:
            for first, stop in spans:
                yield self.cold_tile(row, first, stop, heads)
            return
        reads = [partial(self._host_tile, row, first, stop, heads) for first, stop in spans]
        for (first, stop), (key, value) in zip(spans, self.cold.ahead.tiles(reads), strict=True):
            valid = self._valid(row, first, stop)
            yield Tile(key[None], value[None], 0, 0, key.shape[1], self.hot_start(first), valid)

    def _host_tile(self, row: int, first: int, stop: int, heads: slice) -> tuple[HostTile, HostTile]:
        """Read pages in RAM, or view them there if a device copies them by itself."""
        arena, ids = self.cold.arena, self.rows[row].pages[first:stop].tolist()
        found = arena.pieces(ids) if heads == ALL else None
        if found is None:
            key, value = arena.tile(ids, heads)
            parts = HostTile([key], tuple(key.shape), False), HostTile([value], tuple(value.shape), False)
        else:
            page, shape = (len(ids), self.shape.heads, self.config.page_tokens), self.shape
            keys, values = found
            parts = HostTile(keys, (*page, shape.key_width), True), HostTile(values, (*page, shape.value_width), True)
        numbers = sum(piece.numel() for part in parts for piece in part.pieces)
        self.cold.counters.streamed_bytes += numbers * self.shape.dtype.itemsize
        return parts

    def paged_tiles(self, row: int, pages: int, heads: slice) -> Iterator[Tile | PagedTile]:
        """View the same where it lies, or read it where that cannot be."""
        arena, ids = self.cold.arena, self.rows[row].pages
        keys, values = arena.table(False), arena.table(True)
        if keys is None or values is None:
            yield from self.cold_tiles(row, pages, heads)
            return
        keys, values = keys[:, heads], values[:, heads]
        brings = arena.absent
        token_bytes = keys.shape[1] * self.shape.token_bytes // self.shape.heads
        for first in range(0, pages, self.tile_pages):
            stop = min(first + self.tile_pages, pages)
            self.cold.counters.streamed_bytes += (stop - first) * self.config.page_tokens * token_bytes
            if brings:
                arena.bring_pages(ids[first:stop], heads)
            yield PagedTile(keys, values, ids[first:stop], self.hot_start(first), self._valid(row, first, stop))

    def _valid(self, row: int, first: int, stop: int) -> torch.Tensor | None:
        """Tell which tokens of pages are valid; None if all are."""
        return self.validity.row(row, self.hot_start(first), self.hot_start(stop)) if self.rows[row].padded else None

    def cold_tile(self, row: int, first: int, stop: int, heads: slice = ALL) -> Tile:
        """Read the pages ``[first, stop)`` of a sequence."""
        cold, start = self.cold, self.hot_start(first)
        key, value = cold.arena.tile(self.rows[row].pages[first:stop].tolist(), heads)
        cold.counters.streamed_bytes += (key.numel() + value.numel()) * key.element_size()
        valid = self._valid(row, first, stop)
        parts = cold.transfer.upload(key)[None], cold.transfer.upload(value)[None]
        return Tile(*parts, row=0, start=0, count=key.shape[1], first=start, valid=valid)

    def memory(self) -> TierBytes:
        """Count bytes by tier, with what is reserved for the call that is not over."""
        parts = [self.held.bytes, *self.cold.memory(self.rows, self.reservation)]
        return TierBytes(*map(sum, zip(*parts, strict=True)))

    def tokens(self) -> TierTokens:
        """Count positions by part."""
        pages = self.config.cold_pages(self.length)
        cold, size = pages * self.config.page_tokens, self.config.page_tokens
        sinks = min(self.config.sink_tokens, self.length)
        disk = self.cold.arena.pages_on_disk(self.rows[0].pages[:pages]) * size
        return TierTokens(sinks, self.length - sinks - cold, cold - disk, disk)
