"""How the pages of a snapshot become those of a store: where they lie, their index, and who has them (SPEC 9.8).

Where they can be read later they stay where they are, but for the index, until something of them is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, cast

import numpy as np
import torch
from kiv_reference.snapshot import Snapshot
from numpy.typing import NDArray

from .index.index import Coded, code_pages
from .interrupts import REFUSALS, asked
from .memory.ledger import Reservation
from .pages.block_table import BlockTable
from .tokens import Tokens

PAGES = 256
"""Whose index is taken over at once."""


class Use(NamedTuple):
    """Where a page is used first: in which sequence, and as which of its pages."""

    sequence: int
    place: int


class Adoption:
    """The pages of a snapshot, for an empty store that has its samples."""

    def __init__(self, tokens: Tokens, snapshot: Snapshot) -> None:
        self._tokens, self._snapshot, self._cold = tokens, snapshot, tokens.cold
        first = np.zeros(len(snapshot.cold), np.int64)  # a page that none has is read like any, and let go
        numbers, at = np.unique(snapshot.pages, return_index=True)
        first[numbers] = at
        self._uses = [Use(*divmod(at, snapshot.pages.shape[1])) for at in first.tolist()]
        self._stays = snapshot.cold.lasting and self._cold.arena.reads_saved

    def run(self) -> None:
        """Take the pages, or raise and take none."""
        cold, count = self._cold, len(self._snapshot.cold)
        room = cold.reserve(count, saved=self._stays)
        ids, done = cold.take(count), 0
        try:
            if self._stays:
                cold.arena.adopt(ids, self._snapshot.cold, room)
                done = count
            for part in () if self._stays else self._steps(slice(0, count)):
                self._write(ids, part, room)
                done = part.stop
            finite = np.ones(count, bool)
            for start in range(0, 0 if cold.index is None else count, PAGES):
                part = slice(start, min(start + PAGES, count))
                finite[part] = self._index(ids, part)
            for number, pages in enumerate(self._snapshot.pages):
                table = self._table(number, finite[pages])
                cold.hold(pages.tolist())
                self._tokens.rows[number] = table  # only now: what a row has is dropped when it is undone
        except REFUSALS:
            cold.let_go(ids[:done], room)
            cold.drop(ids[done:])
            cold.release(room)
            raise
        cold.let_go(ids)  # the sequences hold them now

    def _steps(self, pages: slice) -> Iterator[slice]:
        """Cut pages into as many as are coded at once."""
        step = max(1, self._cold.tuning.index_tokens // self._cold.config.page_tokens)
        for start in range(pages.start, pages.stop, step):
            yield slice(start, min(start + step, pages.stop))

    def _read(self, part: slice) -> list[torch.Tensor]:
        """Read keys and values of pages."""
        return [asked(self._snapshot.read_pages, values, part.start, part.stop) for values in (False, True)]

    def _write(self, ids: list[int], part: slice, room: Reservation) -> None:
        """Copy in pages."""
        key, value = self._read(part)
        self._cold.arena.write(ids[part], key, value, room)

    def _index(self, ids: list[int], part: slice) -> NDArray[np.bool_]:
        """Store the index of pages, as it came along or made anew; returns which mean values are all numbers."""
        index, given = self._cold.index, asked(self._snapshot.cold.index, part.start, part.stop)
        assert index is not None, "exact mode has none"
        coded = None if given is None else index.taken(given, part.stop - part.start)
        finite: list[torch.Tensor] = []
        for step in (part,) if coded is not None else self._steps(part):
            now, device = self._coded(index.coded, step) if coded is None else coded, self._tokens.shape.device
            index.put(ids[step], Coded(*(field.to(device) for field in now)))
            finite.append(now.value.isfinite().flatten(1).all(dim=1).cpu())
        return torch.cat(finite).numpy()

    def _coded(self, channels: int, part: slice) -> Coded:
        """Make the index of pages, each with the samples and the validity of the sequence that has it first."""
        tokens, snapshot, uses = self._tokens, self._snapshot, self._uses[part]
        size, hot = snapshot.config.page_tokens, snapshot.config.hot_tokens
        starts = [tokens.hot_start(use.place) for use in uses]
        weights = [tokens.samples.weights(u.sequence, [s + size + hot]) for u, s in zip(uses, starts, strict=True)]
        valid = None
        if snapshot.valid is not None:
            flags = [snapshot.valid[u.sequence, s : s + size] for u, s in zip(uses, starts, strict=True)]
            valid = torch.stack(flags)
            valid = None if bool(valid.all()) else valid
        device = tokens.shape.device
        key, value = (states.to(device) for states in self._read(part))
        return code_pages(key, value, valid, self._cold.transfer.send(torch.cat(weights)), channels)

    def _table(self, number: int, finite: NDArray[np.bool_]) -> BlockTable:
        """Make the table of a sequence, of whose pages some have mean values that are all numbers."""
        table, odd = BlockTable(), np.flatnonzero(~finite)
        pages, size = self._snapshot.pages[number].tolist(), self._snapshot.config.page_tokens
        table.extend(pages, self._counts(number), size, False)
        table.finite = int(odd[0]) if odd.size else len(pages)
        return table

    def _counts(self, sequence: int) -> list[int]:
        """Count the valid tokens of each page of a sequence."""
        size, valid, pages = self._snapshot.config.page_tokens, self._snapshot.valid, self._snapshot.pages.shape[1]
        if valid is None:
            return [size] * pages
        start = self._tokens.hot_start(0)
        flags = valid[sequence, start : start + pages * size].view(pages, size)
        return cast("list[int]", flags.sum(dim=1).tolist())
