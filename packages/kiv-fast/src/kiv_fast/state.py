"""What a store holds: recent tokens, page tables, validity, samples; and how tokens move (SPEC 2, 9)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from kiv_reference.config import KIVConfig
from kiv_reference.report import TierBytes, TierTokens

from .cold import Cold
from .index.samples import Samples
from .interrupts import REFUSALS
from .memory.ledger import NOTHING
from .memory.scratch import step_bytes
from .ops.arguments import PagedTile, Tile
from .pages.block_table import Row
from .pages.validity import Validity
from .shape import Shape
from .tiers.window import Recent


class State:
    """The tokens of one store. Rows share pages; recent tokens are each state's own."""

    def __init__(self, shape: Shape, config: KIVConfig, cold: Cold) -> None:
        self.shape, self.config, self.cold = shape, config, cold
        self.rows = [Row() for _ in range(shape.batch)]
        self.recent = Recent(shape, config)
        self.validity = Validity(shape.batch, shape.device)
        self.samples = Samples(shape)
        self.length = 0
        self.pages = 0  # cold pages of each row that have left the hot window
        self.finite = True  # whether every value is a number
        self._booked = NOTHING
        self._promised = NOTHING  # booked for pages that will leave the hot window
        self._planned = 0  # what steps of the pool needed before the last append
        self._settled = True
        self._begun: tuple[int, int] | None = None  # pages and samples before the call that is being answered
        self._owner = object()  # of promises: not the state, which goes when it is dropped, without a cycle

    def prepare(self, tokens: int, padded: bool) -> None:
        """Refuse if so many tokens more do not fit, once appended and once their call is over (SPEC 10.2)."""
        length = self.length + tokens
        pages = self.config.cold_pages(length)
        self._planned = self.cold.scratch.plan(step_bytes(self.shape, self.config, self.cold.tuning, pages))
        try:
            self._book(self.recent.bytes_with(tokens) + self.validity.bytes_with(length, padded), length)
            self._promised = self.cold.promise(self._owner, len(self.rows) * (pages - self.pages))
        except REFUSALS:
            self._refused()
            raise

    def append(self, key: torch.Tensor, value: torch.Tensor, valid: torch.Tensor | None, finite: bool) -> None:
        """Add tokens; keys and values at invalid positions are zeros."""
        n = key.shape[2]
        try:
            validity = self.validity.extended(valid, self.length, n)
            self.recent.append(key, value)
        except REFUSALS:
            self._refused()
            raise
        self.validity = validity
        self.length += n
        self.finite = self.finite and finite
        self._settled = self._settled and n <= self.cold.tuning.settle_tokens

    def _refused(self) -> None:
        """Give back what an append that does not come about was booked."""
        self.cold.scratch.unplan(self._planned)
        self.withdraw()

    def withdraw(self) -> None:
        """End what was promised to an append that did not come about, or is over."""
        self.cold.settle(self._owner)
        self._promised = NOTHING
        self._book(self._device_bytes, self.length)

    def begin(self, query: torch.Tensor, valid: torch.Tensor | None) -> None:
        """Begin to answer the queries ``[B, H, G, TQ, D]`` of the last append, and note the sampled ones (SPEC 3.2)."""
        self._begun = self.pages, self.samples.count
        if not self.config.exact:
            self.samples.take(query, self.length, valid, self.cold.transfer)

    def finish(self) -> None:
        """A call is over: what it made cold leaves (SPEC 2.3), and what it needed is given back."""
        self.evict(self.config.cold_pages(self.length))
        self._begun = None
        if not self._settled:
            self.recent.settle()
            self._settled = True
        self.withdraw()

    def take_back(self) -> None:
        """A call failed: what it made cold is hot again, since codes depend on its queries, which do not count."""
        self.cold.scratch.lend(0)
        if self._begun is not None:
            pages, samples = self._begun
            self._cut(pages)
            self.recent.take_back(self.pages - pages)
            self.pages, self._begun = pages, None
            self.samples.forget(samples)

    def _cut(self, pages: int) -> None:
        """Keep the first `pages` pages of each row, and the room that was promised for the others."""
        for row in self.rows:
            self.cold.cut(row, pages)
        self.cold.renew()

    def evict(self, pages: int) -> None:
        """Move pages out of the hot window until `pages` of each row are cold (SPEC 2.3). None ever comes back here."""
        n = pages - self.pages
        if n > 0:
            size, start = self.config.page_tokens, self.config.sink_tokens + self.pages * self.config.page_tokens
            boundaries = [start + page * size + self.config.hot_tokens for page in range(1, n + 1)]
            try:
                for number, row in enumerate(self.rows):
                    valid = self.validity.row(number, start, start + n * size)
                    key, value = self.recent.pages(number, n)
                    weights = None if self.config.exact else self.samples.weights(number, boundaries)
                    self.cold.add(row, key, value, None if valid is None else valid.view(n, size), weights)
            except REFUSALS:
                self._cut(self.pages)
                raise
            self.pages = pages
            self.recent.drop_pages(n)

    @property
    def _device_bytes(self) -> int:
        return self.recent.nbytes + self.validity.nbytes

    def _book(self, device: int, length: int) -> None:
        ram = 0 if self.config.exact else self.samples.bytes_at(length)
        self.cold.account.take(device=device - self._booked.device, ram=ram - self._booked.ram)
        self._booked = TierBytes(device, ram, 0)

    @property
    def tile_pages(self) -> int:
        """Pages of a tile."""
        return max(1, self.cold.tuning.tile_tokens // self.config.page_tokens)

    def hot_start(self, pages: int) -> int:
        """First hot position with so many cold pages."""
        return self.config.sink_tokens + pages * self.config.page_tokens

    def tiles(self, row: int, pages: int, stop: int) -> Iterator[Tile]:
        """Sinks and, from the page `pages` on, everything before position `stop`.

        The tiles depend on positions alone, not on where the tokens are by now: repeated calls give the same bits.
        """
        sinks = min(self.recent.sink_count, stop)
        if sinks:
            yield self.recent.sinks(row, sinks, self.validity.row(row, 0, sinks))
        step = self.tile_pages * self.config.page_tokens
        for start in range(self.hot_start(pages), stop, step):
            yield self._tile(row, start, min(start + step, stop))

    def _tile(self, row: int, start: int, stop: int) -> Tile:
        """Tokens ``[start, stop)`` from the beginning of a page on, wherever they are."""
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

    def whole_tile(self, row: int, pages: int) -> Tile | PagedTile:
        """The first `pages` pages of a sequence: where they lie, if the arithmetic can read them there."""
        cold, start = self.cold, self.config.sink_tokens
        keys, values = cold.arena.table(False), cold.arena.table(True)
        if keys is None or values is None:
            return self.cold_tile(row, 0, pages)
        cold.counters.streamed_bytes += pages * cold.arena.page_bytes
        valid = self.validity.row(row, start, self.hot_start(pages)) if self.rows[row].padded else None
        return PagedTile(keys, values, self.rows[row].pages.array[:pages], start, valid)

    def cold_tile(self, row: int, first: int, stop: int) -> Tile:
        """The pages ``[first, stop)`` of a sequence."""
        cold, start = self.cold, self.hot_start(first)
        key, value = cold.arena.tile(self.rows[row].pages.tolist(first, stop))
        cold.counters.streamed_bytes += (key.numel() + value.numel()) * key.element_size()
        valid = self.validity.row(row, start, self.hot_start(stop)) if self.rows[row].padded else None
        parts = cold.transfer.upload(key)[None], cold.transfer.upload(value)[None]
        return Tile(*parts, row=0, start=0, count=key.shape[1], first=start, valid=valid)

    def crop(self, length: int) -> None:
        """Keep the first `length` tokens (SPEC 9.2): pages that are hot again come back."""
        pages, size = self.config.cold_pages(length), self.config.page_tokens
        self.finish()
        first, start = self.hot_start(pages), self.hot_start(self.pages)
        back: tuple[torch.Tensor, torch.Tensor] | None = None
        if pages < self.pages and length > first:
            keep = min(length, start) - first
            tiles = [self._tile(row, first, first - (-keep // size) * size) for row in range(self.shape.batch)]
            back = (
                torch.stack([tile.key[:, :keep] for tile in tiles]),
                torch.stack([tile.value[:, :keep] for tile in tiles]),
            )
        sinks = min(length, self.recent.sink_count)
        recent, validity = self.recent.cropped(sinks, max(0, length - start), back), self.validity.cropped(length)
        samples = self.samples.cropped(length)
        self._book(max(self._booked.device, recent.nbytes + validity.nbytes), self.length)
        # From here on nothing asks for memory.
        self.recent, self.validity, self.samples, self.length = recent, validity, samples, length
        self._settled = True
        if pages < self.pages:
            for row in self.rows:
                self.cold.cut(row, pages)
            self.pages = pages
        self.withdraw()

    def select(self, rows: list[int]) -> State:
        """A state whose sequence i is sequence ``rows[i]``, with the same pages (SPEC 9.3, 9.4)."""
        copy = State(self.shape._replace(batch=len(rows)), self.config, self.cold)
        try:
            copy._book(len(rows) * (self._device_bytes // self.shape.batch), self.length)
            at = torch.tensor(rows, dtype=torch.int64, device=self.shape.device)
            copy.rows.clear()
            for row in rows:
                copy.rows.append(self.cold.share(self.rows[row]))
            copy.recent = self.recent.select(at)
            copy.length, copy.pages, copy.finite, copy._settled = self.length, self.pages, self.finite, self._settled
            copy.validity = self.validity.select(at)
            copy.samples = self.samples.select(torch.tensor(rows, dtype=torch.int64, device="cpu"))
            # What the last append will make cold leaves the copy's hot window too.
            more = self.config.cold_pages(copy.length) - copy.pages
            copy._promised = self.cold.promise(copy._owner, len(rows) * more)
        except REFUSALS:
            copy.release()
            raise
        return copy

    def release(self) -> None:
        """Give back everything."""
        for row in self.rows:
            self.cold.cut(row, 0)
        self.cold.settle(self._owner)
        self.samples = Samples(self.shape)
        self._book(0, 0)

    def memory(self) -> TierBytes:
        """Bytes by tier, with what is booked for the call that is not over."""
        tables = [self.cold.row_bytes(row) for row in self.rows]
        parts = [self._booked, self._promised, *tables]
        cold = sum(len(row.pages) for row in self.rows)
        disk = sum(self.cold.arena.pages_on_disk(row.pages.array) for row in self.rows)
        size = self.cold.arena.page_bytes
        ram = (cold - disk) * size + sum(part.ram for part in parts)
        return TierBytes(sum(part.device for part in parts), ram, disk * size + self._promised.disk)

    @property
    def near_bytes(self) -> int:
        """Device bytes of sinks, hot tokens and validity."""
        return self._booked.device

    def tokens(self) -> TierTokens:
        """Positions by part."""
        pages = self.config.cold_pages(self.length)
        cold, size = pages * self.config.page_tokens, self.config.page_tokens
        sinks = min(self.config.sink_tokens, self.length)
        disk = self.cold.arena.pages_on_disk(self.rows[0].pages.array[:pages]) * size
        return TierTokens(sinks, self.length - sinks - cold, cold - disk, disk)
