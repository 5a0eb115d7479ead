"""In which order things came: eight bytes for each, and no object of Python's."""

from __future__ import annotations

from array import array
from collections.abc import Iterator


class Order:
    """Numbers from the one that came first to the one that came last."""

    def __init__(self) -> None:
        # For each number the ones before and after it, one place further on: both ends are place 0.
        self._before, self._after, self._count = array("i", [0]), array("i", [0]), 0

    def resize(self, numbers: int) -> None:
        """Have room for so many numbers."""
        more = numbers + 1 - len(self._before)
        if more > 0:
            self._before.extend(array("i", [0]) * more)
            self._after.extend(array("i", [0]) * more)
        elif more < 0:
            self._before, self._after = self._before[:more], self._after[:more]

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        at = 0
        while at := self._after[at]:
            yield at - 1

    def append(self, number: int) -> None:
        """Take in a number."""
        at, last = number + 1, self._before[0]
        self._before[at], self._after[at] = last, 0
        self._after[last] = self._before[0] = at
        self._count += 1

    def remove(self, number: int) -> None:
        """Let go of a number that is here."""
        before, after = self._before[number + 1], self._after[number + 1]
        self._after[before], self._before[after] = after, before
        self._count -= 1
