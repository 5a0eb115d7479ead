"""What is noted about pages: numbers of four bytes side by side, where a list of Python's takes forty for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

SLACK = 8
"""A block that grows has room for an eighth more."""


class Integers:
    """int32 in one block that grows at the end and returns its memory as it shrinks.

    Reading or writing one costs the same however many there are.

    Parameters
    ----------
    numbers : to begin with
    """

    def __init__(self, numbers: Sequence[int] | NDArray[np.int32] = ()) -> None:
        self._block = np.array(numbers, np.int32)
        self._count = len(self._block)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        return iter(self.tolist())

    def __getitem__(self, at: int) -> int:
        return self.array.item(at)

    def __setitem__(self, at: int, number: int) -> None:
        self.array[at] = number

    @property
    def array(self) -> NDArray[np.int32]:
        """A view, until the next change of size."""
        return self._block[: self._count]

    def tolist(self, first: int = 0, stop: int | None = None) -> list[int]:
        """Return numbers as Python has them."""
        return self.array[first:stop].tolist()

    def extend(self, numbers: Sequence[int]) -> None:
        """Add numbers at the end."""
        count = self._count
        self.resize(count + len(numbers))
        self._block[count : self._count] = numbers

    def resize(self, count: int, fill: int = 0) -> None:
        """Grow to `count` numbers with `fill` at the end, or shrink."""
        held = self._count
        if not count <= len(self._block) <= 2 * count + SLACK:
            block = np.empty(count + count // SLACK if count > held else count, np.int32)
            block[: min(held, count)] = self._block[: min(held, count)]
            self._block = block
        self._block[held:count] = fill
        self._count = count

    def strip(self, empty: int) -> None:
        """Drop what is `empty` at the end."""
        kept = np.flatnonzero(self.array != empty)
        self.resize(int(kept[-1]) + 1 if kept.size else 0)
