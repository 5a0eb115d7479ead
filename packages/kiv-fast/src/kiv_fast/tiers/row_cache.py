"""Rows that the last steps read from a file, kept in RAM: from step to step the candidates hardly change.

A row is known by its offset in the file. It may lie in any of `WAYS` slots of one set, and displaces the one there that
was asked for least recently.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ..memory.growable_table import reserve
from ..ops.library import load

WAYS = 8
"""Slots of a set."""

NOTED_BYTES = 16
"""Of a slot, beside its row: which row it is, and when it was asked for."""

NOTHING = -1
"""In a slot without a row."""


class RowCache:
    """Slots for rows of up to `row_bytes`, in at most `nbytes` with all that is noted about them.

    Raises
    ------
    MemoryError
        If the system refuses the memory.
    """

    def __init__(self, row_bytes: int, nbytes: int) -> None:
        # Of an odd number of sets each serves keys and values, which take turns in the file at powers of two.
        self._sets = (nbytes // (WAYS * (row_bytes + NOTED_BYTES)) - 1) | 1
        slots = self._sets * WAYS
        held = reserve(slots * row_bytes, torch.uint8)
        flat = np.zeros(slots * row_bytes, np.uint8) if held is None else held[0].numpy()
        self._rows = flat.reshape(slots, row_bytes)
        self._offset = np.full((self._sets, WAYS), NOTHING, np.int64)
        self._asked = np.zeros((self._sets, WAYS), np.int64)
        self._turn = 1  # of the next row that is asked for
        self._row_bytes = row_bytes

    def _sets_of(self, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        return offsets // self._row_bytes % self._sets

    def _note(self, slots: NDArray[np.int64]) -> None:
        """Note that slots are asked for now, one after another."""
        self._asked.reshape(-1)[slots] = np.arange(self._turn, self._turn + len(slots))
        self._turn += len(slots)

    def take(self, offsets: NDArray[np.int64], out: NDArray[np.uint8], at: NDArray[np.int64]) -> NDArray[np.int64]:
        """Copy what is here of the rows at `offsets [K]` to rows ``at [K]`` of `out`; returns which are not here."""
        sets = self._sets_of(offsets)
        found = np.flatnonzero(self._offset[sets] == offsets[:, None])
        here = found // WAYS
        slots = sets[here] * WAYS + found % WAYS
        self._note(slots)
        copy_rows(self._rows[:, : out.shape[1]], slots, out, at[here], torch.get_num_threads())
        missing = np.ones(len(offsets), bool)
        missing[here] = False
        return np.flatnonzero(missing)

    def keep(self, offsets: NDArray[np.int64], rows: NDArray[np.uint8], at: NDArray[np.int64]) -> None:
        """Keep the rows at `offsets [K]` of the file, none of them here, which are rows ``at [K]`` of `rows`.

        Of several that displace the same one, the last is kept.
        """
        sets = self._sets_of(offsets)
        slots = sets * WAYS + self._asked[sets].argmin(axis=1)
        self._note(slots)
        known = self._offset.reshape(-1)
        known[slots] = NOTHING  # for as long as an interrupt would leave half a row
        copy_rows(rows, at, self._rows[:, : rows.shape[1]], slots, 1)
        known[slots] = offsets

    def forget(self) -> None:
        """Forget all rows: places in the file are free, and may be used again."""
        self._offset.fill(NOTHING)


def copy_rows(
    source: NDArray[np.uint8], at: NDArray[np.int64], out: NDArray[np.uint8], to: NDArray[np.int64], threads: int
) -> None:
    """Copy rows ``at [K]`` of `source [n, bytes]` to rows ``to [K]`` of `out [m, bytes]`; in C, where that was built.

    One thread copies them in order; with several no two may go to the same row.
    """
    library = load()
    if library is None:
        out[to] = source[at]
        return
    at, to = at * source.strides[0], to * out.strides[0]
    places = source.ctypes.data, at.ctypes.data, out.ctypes.data, to.ctypes.data
    library.copy_rows(len(at), source.shape[1], *places, threads)
