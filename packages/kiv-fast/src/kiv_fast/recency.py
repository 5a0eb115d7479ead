"""In which order things were last used: eight bytes for each, and no object of Python's."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

ENDS = 2
"""Orders that share links."""


class Links:
    """For each number the ones that were used before and after it, in whichever order it is."""

    def __init__(self) -> None:
        # An order begins and ends at its own end.
        self.before, self.after = array("i", range(ENDS)), array("i", range(ENDS))

    def resize(self, numbers: int) -> None:
        """Have links for so many numbers."""
        more = numbers + ENDS - len(self.before)
        if more > 0:
            self.before.extend(array("i", [0]) * more)
            self.after.extend(array("i", [0]) * more)
        elif more < 0:
            self.before, self.after = self.before[:more], self.after[:more]


class Order:
    """Numbers from the one used longest ago to the one used last. No number is in two orders of the same links.

    Parameters
    ----------
    links : Links
    end : int
        Which of their orders this is.
    """

    def __init__(self, links: Links, end: int) -> None:
        self._links, self._end, self._count = links, end, 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        at = self._end
        while (at := self._links.after[at]) != self._end:
            yield at - ENDS

    def append(self, number: int) -> None:
        """Take in a number that was just used."""
        before, after, at, end = self._links.before, self._links.after, number + ENDS, self._end
        last = before[end]
        before[at], after[at] = last, end
        after[last] = before[end] = at
        self._count += 1

    def remove(self, number: int) -> None:
        """Let go of a number that is in this order."""
        before, after, at = self._links.before, self._links.after, number + ENDS
        after[before[at]], before[after[at]] = after[at], before[at]
        self._count -= 1

    def move_to_end(self, number: int) -> None:
        """A number of this order was used."""
        self.remove(number)
        self.append(number)
