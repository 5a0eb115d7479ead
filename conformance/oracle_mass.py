"""The second oracle's account of mass: SPEC chapter 6 in Python numbers and loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .oracle_numbers import Vector, dot, log_sum_exp, share

if TYPE_CHECKING:
    from .oracle import Head, Modifiers
    from .oracle_index import Page

FACTORS = (0, 1, 2, 4)
"""C' in units of C (SPEC 6.3)."""

Asked = Sequence[tuple[Vector, int, float]]
"""Members of a block: query, position, sink logit."""


def slack(page: Page, query: Vector, scale: float) -> float:
    """Return the most by which slack may be enlarged: float32's worst rounding (SPEC 6.2)."""
    magnitude = dot([abs(x) for x in query], [3 * k + e for k, e in zip(page.largest, page.error, strict=True)])
    return 8 * (len(query) + page.count + 8) * 2.0**-24 * scale * magnitude


def rounding(head: Head, queries: Sequence[Vector], scale: float) -> float:
    """Return the error of the logarithm of a mass computed in float32; sums by blocks and pages lose most."""
    width = len(queries[0])
    top = max(dot(map(abs, q), head.largest) for q in queries)
    return 4 * (width + sum(head.valid) + 512) * 2.0**-24 * (1 + 4 * scale * top)


def missed_mass(
    head: Head,
    asked: tuple[Vector, int, float],
    candidates: Sequence[int],
    selected: Sequence[int],
    m: Modifiers,
    enlarged: bool,
) -> float:
    """Return the missed bound of SPEC 6.2: without rounding, or enlarged as far as it may be.

    Parameters
    ----------
    asked : a query, its position, its sink logit
    """
    query, at, sink = asked
    chosen, known = set(selected), set(candidates)
    held = head.logits(query, (i for i in [*head.kept, *selected] if i <= at), m)
    left = head.logits(query, (i for i in candidates if i not in chosen), m)
    size = [abs(x) for x in query]
    pages, estimates = head.estimates(query, m.scale)
    for made in pages:
        page, rest = made.page, [i for i in made.page.positions if i not in known]
        if rest:
            room = m.scale * dot(size, page.error) + made.less + (slack(page, query, m.scale) if enlarged else 0.0)
            left += [m.cap(estimates[i]) + room for i in rest]
    room = rounding(head, [query], m.scale) if enlarged else 0.0
    missed = log_sum_exp(left)
    return 0.0 if missed == -math.inf else math.exp(min(0.0, missed - log_sum_exp([*left, *held, sink]) + room))


def true_missed(head: Head, query: Vector, at: int, sink: float, selected: Sequence[int], m: Modifiers) -> float:
    """Return the share of full attention's mass that is not attended exactly."""
    chosen = {*head.kept, *selected}
    seen = [i for i in range(at + 1) if head.valid[i]]
    logits = head.logits(query, seen, m)
    left = [logit for i, logit in zip(seen, logits, strict=True) if i not in chosen]
    return share(log_sum_exp(left), [*logits, sink])


def enough(
    head: Head,
    asked: Asked,
    candidates: Sequence[int],
    selected: Sequence[int],
    m: Modifiers,
    enlarged: bool | None = None,
) -> bool:
    """Say whether the missed bound of every member is at most the limit (SPEC 6.3).

    With `enlarged` False or True: whether it may be, and whether it surely is, for all that rounding allows.
    """
    limit = head.config.max_missed_mass
    assert limit is not None, "asked only where there is a limit"
    if enlarged is not None:
        room = rounding(head, [q for q, _, _ in asked], m.scale)
        limit *= math.exp(-room if enlarged else min(room, 80.0))
    return all(missed_mass(head, one, candidates, selected, m, bool(enlarged)) <= limit for one in asked)
