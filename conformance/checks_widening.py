"""Whether twice as many candidates were taken where they had to be, and nowhere else (SPEC 4.9).

A report does not tell what was first selected from C candidates, and near ties leave open which tokens those are and
which of them are late: the fewest and the most late tokens decide only where they decide alike.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

from .allowed_error import Precision, group_errors, index_errors, token_errors
from .claims import of_head
from .oracle_numbers import group_scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .failure import Scene
    from .low import LowPrecision
    from .oracle_block import HeadBlock, Retrieved


def check_widening(scene: Scene, hb: HeadBlock, given: Retrieved, low: LowPrecision, precision: Precision) -> None:
    """Check that a retrieval by chapter 4 is widened or not, as one of the two readings has it."""
    right = widenings(hb, low, precision)
    claim = f"{of_head(scene, 'widened')}.item() is {not given.widened}"
    what = "widened without need" if given.widened else "not widened"
    scene.require(given.widened in right, "4.9", what, claim, got=given.widened, cold=len(hb.head.page_at))


def widenings(hb: HeadBlock, low: LowPrecision, precision: Precision) -> set[bool]:
    """Say whether rounding lets a block be widened, and whether it lets it be not."""
    config, scale, members = hb.head.config, hb.modifiers.scale, hb.vectors
    if len(hb.head.page_at) <= config.candidate_tokens:
        return {False}
    positions, by_member = hb.head.index_scores(members, scale)
    scores = group_scores(by_member, config.group)
    errors = group_errors(by_member, index_errors(low, members, scale, precision), config.group, precision)
    candidates, _ = _among_best(scores, errors, config.candidate_tokens)
    if len(candidates) < config.candidate_tokens:  # other candidates may have other group scores
        return {False, True}
    surely_early, maybe_early = ({positions[n] for n in ns} for ns in _among_best(scores, errors, hb.early))
    first, by_member = hb.head.token_scores(members, [positions[n] for n in candidates], scale)
    errors = group_errors(by_member, token_errors(low, members, first, scale, precision), config.group, precision)
    limits = _among_best(group_scores(by_member, config.group), errors, config.retrieve_tokens or 0)
    surely, maybe = ({first[n] for n in ns} for ns in limits)
    return {hb.too_late(len(surely - maybe_early)), hb.too_late(len(maybe - surely_early))}


def _among_best(scores: Sequence[float], errors: Sequence[float], n: int) -> tuple[list[int], list[int]]:
    """Return which are surely among the n best, and which may be."""
    least, most = ([s + way * e for s, e in zip(scores, errors, strict=True)] for way in (-1, 1))
    from_least, from_most = sorted(least), sorted(most)
    # Of all that may be as good as one, it is one itself; of those that surely are better it is none.
    surely = [i for i, x in enumerate(least) if len(scores) - bisect_left(from_most, x) <= n]
    maybe = [i for i, x in enumerate(most) if len(scores) - bisect_right(from_least, x) < n]
    return surely, maybe
