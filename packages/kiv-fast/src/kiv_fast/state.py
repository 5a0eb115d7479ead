"""How the tokens of a store move between two appends: answered, taken back, cropped, selected (SPEC 2, 9)."""

from __future__ import annotations

import torch

from .growing import Growing
from .index.samples import EVERY, Samples
from .interrupts import REFUSALS
from .tiers.window import Recent


class State(Growing):
    """Tokens that change: from the first query of a call to its end, and between calls."""

    @property
    def late(self) -> bool:
        """Whether what the device finds about a token is known only after its answer."""
        return self.flags is not None and self.flags.late

    def settle(self) -> str | None:
        """Learn what the device has found about the last token, if that is not known; if it is refused, it is gone.

        Returns
        -------
        str or None
            What was not finite, a key or a query.
        """
        if not self.unsettled or self.flags is None:
            return None
        if self._odd is None:
            odd_key, odd_value, odd_query = self.flags.take()
            self.finite = self.finite and not odd_value
            self._odd = "key" if odd_key else "query" if odd_query else ""
        what = self._odd
        if what:
            with self.cold.account.changing():
                self.crop(self.length - 1)  # may be refused memory: what was found stays known then
        self.unsettled, self._odd = False, None
        return what or None

    def _release_rest(self) -> None:
        """Give back what a call has taken and not used."""
        self.cold.release(self.reservation)
        self._hold(self._device_bytes, self.length)

    @property
    def samples_due(self) -> bool:
        """Whether a sampled position was appended whose queries were not seen yet."""
        return self.length // EVERY != self.samples.count and not self.config.exact

    def begin(self, query: torch.Tensor | None = None, valid: torch.Tensor | None = None) -> None:
        """Begin to answer the queries of the last append; note the sampled ones if they are due (SPEC 3.2).

        Parameters
        ----------
        query : [B, H, G, TQ, D], optional
            Where samples are due.
        valid : bool [B, TQ], optional
        """
        self._begun = self.pages, self.samples.count
        if query is not None:
            self.samples.take(query, self.length, valid, self.cold.transfer)

    @property
    def unfinished(self) -> bool:
        """Whether something is left to be done when a call ends."""
        return self.length > self._easy_length

    def finish(self) -> None:
        """End a call: what it made cold leaves (SPEC 2.3), and what it needed is given back."""
        self._begun = None
        if not self.unfinished:
            return
        self.evict(self.config.cold_pages(self.length))
        self.recent.compact()
        self._release_rest()
        config, sampled = self.config, self.length // EVERY
        page = config.sink_tokens + config.hot_tokens + (self.pages + 1) * config.page_tokens
        easy = min(page - 1, (sampled + 1) * EVERY - 1, self.length + self.recent.room)
        self._easy_length = min(easy, self.validity.room)

    def take_back(self) -> None:
        """Undo a call that failed: what it made cold is hot again, since codes depend on its queries."""
        if self._begun is not None:
            pages, samples = self._begun
            self._take_back_pages(pages)
            self._begun = None
            self.samples.count = min(self.samples.count, samples)

    def crop(self, length: int) -> None:
        """Keep the first `length` tokens (SPEC 9.2): pages that are hot again come back.

        Pages that no attend has seen become cold only where they stay, and not where the crop is refused.
        """
        self._begun = self.pages, self.samples.count
        pages = self.config.cold_pages(length)
        try:
            self.evict(pages)
            recent, validity = self._recent_of(length), self.validity.cropped(length)
            samples = self.samples.cropped(length)
            device = recent.nbytes + validity.nbytes + self.ids_bytes(self.pages)
            self._hold(max(self.held.bytes.device - self._decoder_bytes, device), self.length)
        except REFUSALS:
            self.take_back()
            raise
        # From here on nothing asks for memory.
        self._easy_length, self._begun = 0, None
        self.recent, self.validity, self.samples, self.length = recent, validity, samples, length
        if pages < self.pages:
            for row in self.rows:
                self.cold.cut(row, pages)
            self.pages = pages
        self._release_rest()

    def _recent_of(self, length: int) -> Recent:
        """Make the recent tokens of the first `length`, with those that come back from cold pages."""
        pages, size = self.config.cold_pages(length), self.config.page_tokens
        first, start = self.hot_start(pages), self.hot_start(self.pages)
        back: tuple[torch.Tensor, torch.Tensor] | None = None
        if pages < self.pages and length > first:
            keep = min(length, start) - first
            tiles = [self._tile(row, first, first - (-keep // size) * size) for row in range(self.shape.batch)]
            keys, values = [tile.key[:, :keep] for tile in tiles], [tile.value[:, :keep] for tile in tiles]
            back = torch.stack(keys), torch.stack(values)
        return self.recent.cropped(min(length, self.recent.sink_count), max(0, length - start), back)

    def select(self, rows: list[int]) -> State:
        """Make a state whose sequence i is sequence ``rows[i]``, with the same pages (SPEC 9.3, 9.4)."""
        copy = State(self.shape._replace(batch=len(rows)), self.config, self.cold)
        try:
            copy._hold(len(rows) * (self._device_bytes // self.shape.batch), self.length)
            at = torch.tensor(rows, dtype=torch.int64, device=self.shape.device)
            copy.rows.clear()
            for row in rows:
                copy.rows.append(self.cold.share(self.rows[row]))
            copy.recent = self.recent.select(at)
            copy.length, copy.pages, copy.finite = self.length, self.pages, self.finite
            copy.validity = self.validity.select(at)
            copy.samples = self.samples.select(torch.tensor(rows, dtype=torch.int64, device="cpu"))
            # What the last append will make cold leaves the copy's hot window too.
            more = self.config.cold_pages(copy.length) - copy.pages
            copy.reservation = self.cold.reserve(len(rows) * more)
        except REFUSALS:
            copy.release()
            raise
        return copy

    def release(self) -> None:
        """Give back everything."""
        for row in self.rows:
            self.cold.cut(row, 0)
        self.cold.release(self.reservation)
        self.samples = Samples(self.shape)
        self.held.resize()
