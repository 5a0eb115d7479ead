"""Rows of cold pages that a device keeps of those its steps have read from host memory, as far as there is room.

A set-associative cache for each head: what a step looks up and replaces is done by the step itself, on the device
(`Kept`). The host makes it, fills it with pages on their way to RAM, and empties it when pages go.
Outputs are the same with any size of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from kiv_reference.config import KIVConfig

from ..shape import Shape
from ..tuning import Tuning
from .transfer import Transfer

WAYS = 8
"""Rows of a set."""

NOTED = 2 * WAYS + 1
"""Integers that are noted of a set: names of rows, when these were asked for, and how many the step has missed."""


@dataclass(frozen=True)
class Kept:
    """What a step looks up and replaces, for keys and for values; a lane is a head of a sequence.

    A row is named by its page's id and its place there. A table int32 ``[lanes, NOTED * sets + 1]`` has what is noted,
    and at its end the number of the step; rows are ``[lanes, WAYS * sets, width]``.
    """

    keys: tuple[torch.Tensor, torch.Tensor]
    values: tuple[torch.Tensor, torch.Tensor]
    use: torch.Tensor  # int64 [lanes, 4]: keys that were kept, keys asked for, the same of values


class Sets(NamedTuple):
    """Sets of rows for each head."""

    keys: int
    values: int

    def bytes_of(self, shape: Shape) -> int:
        """Count the bytes for all heads of all sequences."""
        numbers = WAYS * (self.keys * shape.key_width + self.values * shape.value_width)
        noted = sum(4 * (NOTED * count + 1) for count in self)
        return shape.batch * shape.heads * (shape.dtype.itemsize * numbers + noted + 4 * 8)


def sets_for(shape: Shape, config: KIVConfig, tuning: Tuning, room: int | None) -> Sets | None:
    """Return as many sets as are wanted, or those that fit into `room` bytes; None if there are none.

    Wanted are `Tuning.device_row_steps` times what a step reads that widens no head: candidates' keys and selected
    values, or where nothing is retrieved all that a step attends.
    """
    reads = config.candidate_tokens, config.retrieve_tokens or config.candidate_tokens
    wanted = Sets(*(int(-(-tuning.device_row_steps * rows // WAYS)) for rows in reads))
    if room is not None and wanted.bytes_of(shape) > room:
        share = room / wanted.bytes_of(shape)
        wanted = Sets(*(int(share * count) for count in wanted))
    return wanted if min(wanted) else None


def aside_bytes(shape: Shape, config: KIVConfig) -> int:
    """Count the bytes, for all layers of a shape, that a step takes for rows which it misses until they are kept."""
    selected, size = config.retrieve_tokens or 0, shape.dtype.itemsize
    candidates = 2 * config.candidate_tokens if selected else 0
    rows = candidates * (shape.key_width * size + 4) + selected * (shape.value_width * size + 4)
    return shape.batch * shape.heads * (rows + 2 * 4)


class KeptRows:
    """The cache of a store and its forks; a lane of it is a head of a sequence.

    Attributes
    ----------
    kept : Kept
        What a step looks up and replaces.
    nbytes : int
    """

    def __init__(self, shape: Shape, sets: Sets, transfer: Transfer) -> None:
        self._heads, self._sets, self._transfer = shape.heads, sets, transfer
        self.lanes, self.nbytes = shape.batch * shape.heads, sets.bytes_of(shape)
        widths, device = (shape.key_width, shape.value_width), shape.device
        tables = [torch.empty(self.lanes, NOTED * n + 1, dtype=torch.int32, device=device) for n in sets]
        rows = [
            torch.empty(self.lanes, n * WAYS, width, dtype=shape.dtype, device=device)
            for n, width in zip(sets, widths, strict=True)
        ]
        use = torch.zeros(self.lanes, 4, dtype=torch.int64, device=device)
        self.kept = Kept((tables[0], rows[0]), (tables[1], rows[1]), use)
        self.empty()

    def fill(self, row: int, ids: list[int], key: torch.Tensor, value: torch.Tensor) -> None:
        """Keep the last tokens of new pages, as many as there is room for, in whatever places these would have.

        Parameters
        ----------
        row : int
            Which sequence.
        key : [n, H, P, D]
        value : [n, H, P, DV]
        """
        lanes = slice(row * self._heads, (row + 1) * self._heads)
        for (table, rows), tokens, n in zip((self.kept.keys, self.kept.values), (key, value), self._sets, strict=True):
            size, room = tokens.shape[2], n * WAYS
            last = -(-room // size)
            names = (np.asarray(ids[-last:])[:, None] * size + np.arange(size)).reshape(-1)
            places = names % n * WAYS + names // n % WAYS
            # Of several that would come to one place, the last.
            places, first = np.unique(places[::-1], return_index=True)
            mine = np.ascontiguousarray(len(names) - 1 - first)
            at, of, named = (
                self._transfer.send(torch.from_numpy(numbers))
                for numbers in (places, mine, names[mine].astype(np.int32))
            )
            there = tokens[-last:].transpose(0, 1).flatten(1, 2)
            rows[lanes].index_copy_(1, at, there.index_select(1, of))
            table[lanes].index_copy_(1, at, named.expand(self._heads, -1))
            table[lanes].index_fill_(1, at + room, 0)

    def counts(self) -> tuple[int, int, int, int, int]:
        """Return `Kept.use` of all lanes, and the bytes of what was not kept."""
        keys, key_reads, values, value_reads = cast("list[int]", self.kept.use.sum(dim=0).tolist())
        row_bytes = [rows.shape[2] * rows.element_size() for _, rows in (self.kept.keys, self.kept.values)]
        bus = (key_reads - keys) * row_bytes[0] + (value_reads - values) * row_bytes[1]
        return keys, key_reads, values, value_reads, bus

    def empty(self) -> None:
        """Forget all rows, where pages have gone, whose ids others may get, or where a step was broken off."""
        for (table, _), n in zip((self.kept.keys, self.kept.values), self._sets, strict=True):
            table.zero_()
            table[:, -1] = 1  # the first step; what is filled in before it was asked for in the 0th
            table[:, : n * WAYS] = -1
