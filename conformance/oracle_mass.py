"""The second oracle's account of mass: SPEC chapter 6 in Python numbers and loops."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .oracle import Head, Modifiers, Vector, dot, log_sum_exp, share

STREAM_FACTOR = 4


def slack(head: Head, page: int, query: Vector, scale: float) -> float:
    """The most by which a bound on a page may be enlarged: a float32 computation's worst rounding (SPEC 6.2)."""
    p = head.pages[page]
    reach = dot([abs(x) for x in query], [abs(m) + s for m, s in zip(p.mean, p.spread, strict=True)])
    return 8 * (len(query) + head.config.page_tokens + 8) * 2.0**-24 * scale * reach


def rounding(head: Head, queries: Sequence[Vector], scale: float) -> float:
    """Relative error that a mass computed in float32 may have."""
    width = len(queries[0])
    keys = [head.keys[i] for i in range(len(head.keys)) if head.valid[i]]
    top = max(dot(map(abs, q), map(abs, k)) for q in queries for k in keys)
    return math.expm1(min(4 * (width + len(keys) + 32) * 2.0**-24 * (1 + scale * top), 80.0))


def missed_mass(
    head: Head,
    query: Vector,
    at: int,
    sink: float,
    candidates: Sequence[int],
    selected: Sequence[int],
    m: Modifiers,
    enlarged: bool,
) -> float:
    """The missed bound of SPEC 6.2: without rounding, or enlarged as far as it may be."""
    chosen = set(selected)
    held = [m.logit(query, head.keys[i]) for i in [*head.kept, *selected] if i <= at]
    left = [m.logit(query, head.keys[i]) for j in candidates for i in head.pages[j].positions if i not in chosen]
    for j, page in head.pages.items():
        if j not in candidates:
            bound = head.page_score(query, page, m.scale, 1.0)
            if enlarged:
                bound += slack(head, j, query, m.scale)
            left.append(m.cap(bound) + math.log(page.count))
    return share(log_sum_exp(left), [*left, *held, sink])


def true_missed(head: Head, query: Vector, at: int, sink: float, selected: Sequence[int], m: Modifiers) -> float:
    """The share of full attention's mass that is not attended exactly."""
    chosen = {*head.kept, *selected}
    logits = {i: m.logit(query, head.keys[i]) for i in range(at + 1) if head.valid[i]}
    left = [logit for i, logit in logits.items() if i not in chosen]
    return share(log_sum_exp(left), [*logits.values(), sink])


def whole_pages(
    head: Head,
    queries: Sequence[tuple[Vector, int, float]],
    ranked: Sequence[int],
    selected: Sequence[int],
    m: Modifiers,
    enlarged: bool | None = None,
) -> int | None:
    """The smallest k of SPEC 6.3, or None if the block streams.

    `queries` are the members: query, position, sink logit. `ranked` are all pages, best first. With `enlarged` False
    or True: the smallest and the largest k that rounding allows.
    """
    limit, first = head.config.max_missed_mass, head.config.candidate_pages
    assert limit is not None, "asked only where there is a limit"
    if enlarged is not None:
        room = rounding(head, [q for q, _, _ in queries], m.scale)
        limit = limit / (1 + room) if enlarged else limit * (1 + room)
    for k in range(min(STREAM_FACTOR * first, len(ranked)) + 1):
        taken = {i for j in ranked[:k] for i in head.pages[j].positions}
        known = ranked[: max(k, first)]
        union = sorted(taken | set(selected))
        if all(missed_mass(head, q, at, sink, known, union, m, bool(enlarged)) <= limit for q, at, sink in queries):
            return k
    return None
