"""How tokens come to a store: room is taken, they are written, and the oldest become cold (SPEC 2, 10.2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from kiv_reference.config import KIVConfig
from kiv_reference.report import TierBytes

from .cold import Cold
from .interrupts import REFUSALS
from .memory.ledger import Reservation
from .memory.scratch import step_bytes, tile_bytes
from .ops.decoding import Decoder
from .shape import Shape
from .tokens import Tokens


class Before(NamedTuple):
    """What there was before an append, in case that it does not come about."""

    scratch: int
    held: TierBytes
    pages: int
    moves: int


class Growing(Tokens):
    """Tokens that others come to. What a call needs is taken by `prepare`, before anything changes (SPEC 10.2)."""

    def __init__(self, shape: Shape, config: KIVConfig, cold: Cold) -> None:
        super().__init__(shape, config, cold)
        self._easy_length = 0  # up to here n tokens more need no room that is not held, and make no page cold
        self._step_bytes = step_bytes(shape, config, cold.tuning)
        self._decoder_bytes = 0  # what stays for decode steps from one to the next
        self._odd: str | None = None  # what the device has found about a token that is to be taken back
        self._begun: tuple[int, int] | None = None  # pages and samples before the call that is being answered
        self._before = Before(0, TierBytes(0, 0, 0), 0, 0)

    def prepare(self, tokens: int, padded: bool) -> None:
        """Take room for n tokens more: for them now, and once their call is over; and end the last call.

        Where no attend came after the last append, its pages leave only now, when there is room: what is refused has
        changed nothing, their codes neither.

        Raises
        ------
        KIVBudgetError, KIVStorageError
            If they do not fit. Nothing is taken then.
        """
        length, due = self.length + tokens, self.config.cold_pages(self.length)
        if length <= self._easy_length and not (padded and self.validity.whole):
            self._begun = None
            return
        self._easy_length = 0
        pages, scratch = self.config.cold_pages(length), self.cold.scratch
        self._before = Before(scratch.planned(self.shape.device), self.held.bytes, self.pages, self.recent.moves)
        coming = Reservation()
        try:
            tiles = tile_bytes(self.shape, self.config, self.cold.tuning, pages)
            scratch.plan(max(self._before.scratch, self._step_bytes + tiles), self.shape.device)
            device = self.recent.bytes_with(tokens, due - self.pages) + self.validity.bytes_with(length, padded)
            self._hold(device + self.ids_bytes(pages), length)
            coming = self.cold.reserve(len(self.rows) * (pages - due))
            self.evict(due)
        except REFUSALS:
            self.cold.release(coming)
            self._give_back()
            raise
        self.cold.release(self.reservation)
        self.reservation, self._begun = coming, None

    def plan_step(self, nbytes: int, held: int) -> None:
        """Hold the buffers of a decode step of all sequences, and what stays with the store, from now on.

        Raises
        ------
        KIVBudgetError
        """
        if nbytes > self.cold.scratch.planned(self.shape.device):
            with self.cold.account.changing():
                self.cold.scratch.plan(nbytes, self.shape.device)
        self._step_bytes = max(self._step_bytes, nbytes)
        if held > self._decoder_bytes:
            with self.cold.account.changing():
                self.held.resize(self.held.bytes.device + held - self._decoder_bytes, self.held.bytes.ram)
                self._decoder_bytes = held

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

    def can_put(self, key: torch.Tensor, value: torch.Tensor) -> bool:
        """Tell whether the operations can write these tokens, all valid, where they stay."""
        whole, n = key.stride(3) == 1 and value.stride(3) == 1, key.shape[2]
        able = self.cold.ops.in_place if self.cold.decoder is None else n == 1
        return whole and self.validity.whole and able and n <= self.recent.room

    def put(self, key: torch.Tensor, value: torch.Tensor) -> bool:
        """Add tokens by the operations' own copy; with a key that is not finite, none, and False.

        What a device finds late is taken for finite, until `settle`.
        """
        decoder = self.decoder
        good_keys, finite = (
            self.recent.put(self.cold.ops, key, value) if decoder is None else self._written(decoder, key, value)
        )
        if not good_keys:
            self._refused()
            return False
        self.recent.hot_count += key.shape[2]
        self.length += key.shape[2]
        self.finite = self.finite and finite
        return True

    def _written(self, decoder: Decoder, key: torch.Tensor, value: torch.Tensor) -> list[bool]:
        """Write a token behind the others, where it does not count yet; whether keys, and values, are finite."""
        flags, lengths, (sinks, hot, start) = self.flags, self.lengths, self.recent.counts
        assert flags is not None, "a decoder without flags"
        assert lengths is not None, "a decoder without lengths"
        counts = sinks, hot + 1, start, self.pages
        lengths.written(None)
        decoder.append(key, value, self.recent.hot_buffers, counts, lengths.words, flags.words)
        lengths.written(counts)
        flags.note()
        self.unsettled = flags.late
        return [True, True] if flags.late else [not odd for odd in flags.take()[:2]]

    def _refused(self) -> None:
        """Give back what an append has taken that does not come about."""
        if self._easy_length:  # nothing was
            return
        self.cold.release(self.reservation)
        if self.pages > self._before.pages and self.recent.moves == self._before.moves:  # else they stay cold
            self._take_back_pages(self._before.pages)
        self._give_back()

    def _give_back(self) -> None:
        """Give back what an append has taken beside pages."""
        self.cold.scratch.plan(self._before.scratch, self.shape.device)
        self.held.resize(*self._before.held[:2])

    def evict(self, pages: int) -> None:
        """Move pages out of the hot window until `pages` of each row are cold (SPEC 2.3). None ever comes back here."""
        n = pages - self.pages
        if n > 0:
            size, start = self.config.page_tokens, self.hot_start(self.pages)
            boundaries = [start + page * size + self.config.hot_tokens for page in range(1, n + 1)]
            try:
                for number, row in enumerate(self.rows):
                    valid = self.validity.row(number, start, start + n * size)
                    valid = None if valid is None else valid.view(n, size)
                    weights = None if self.config.exact else self.samples.weights(number, boundaries)
                    key, value = self.recent.pages(number, n)
                    self.cold.add(row, key, value, valid, weights, self.reservation)
                    self.cold.keep_rows(len(self.rows))
                    if self.cold.kept is not None:
                        self.cold.kept.fill(number, row.pages[-n:].tolist(), key, value)
            except REFUSALS:
                self._cut(self.pages)
                raise
            self.pages = pages
            self.recent.drop_pages(n)

    def _take_back_pages(self, pages: int) -> None:
        """Have only the first `pages` pages cold: those after them left the hot window last."""
        self._cut(pages)
        self.recent.take_back(self.pages - pages)
        self.pages = pages

    def _cut(self, pages: int) -> None:
        """Keep the first `pages` pages of each row; the room of the others is reserved again."""
        for row in self.rows:
            self.cold.cut(row, pages, self.reservation)

    @property
    def _device_bytes(self) -> int:
        return self.recent.nbytes + self.validity.nbytes + self.ids_bytes(self.pages)

    def _hold(self, device: int, length: int) -> None:
        """Hold bytes on the device, and in RAM those of the sampled queries of `length` tokens."""
        self.held.resize(device + self._decoder_bytes, 0 if self.config.exact else self.samples.bytes_at(length))
