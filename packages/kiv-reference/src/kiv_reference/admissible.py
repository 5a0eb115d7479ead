"""Which selections are right where scores carry rounding (SPEC 11.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


class Violation(NamedTuple):
    """A chosen item that scores too low beside a rejected one, by indices into the scores."""

    chosen: int
    rejected: int
    excess: float


def violation(scores: Sequence[float], errors: Sequence[float], chosen: Collection[int]) -> Violation | None:
    """Tell whether `chosen` could not have been the best items, and why.

    Another implementation's score of item i lies within ``errors[i]`` of ``scores[i]``. If it chose i and rejected j,
    then ``scores[i] + errors[i] >= scores[j] - errors[j]``, for all such pairs. With one error ε for all items that
    implies the 2ε rule of SPEC 11.2: nothing chosen lies below t - 2ε, nothing rejected above t + 2ε.

    Parameters
    ----------
    scores, errors : one number for each item
    chosen : indices of the chosen items

    Returns
    -------
    Violation or None
        The pair that is furthest apart, or None if the choice is admissible.
    """
    inside = set(chosen)
    outside = [j for j in range(len(scores)) if j not in inside]
    if not inside or not outside:
        return None
    low = min(inside, key=lambda i: scores[i] + errors[i])
    high = max(outside, key=lambda j: scores[j] - errors[j])
    excess = (scores[high] - errors[high]) - (scores[low] + errors[low])
    return Violation(low, high, excess) if excess > 0 else None
