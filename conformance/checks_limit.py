"""Whether as many tokens were taken as `max_missed_mass` needs, and no more (SPEC 6.3).

Which tokens a smaller C' would have taken does not show in a report, and near ties leave it open: each C' that was not
taken is judged by several readings of it, and wrong is only what is wrong by all of them.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from .allowed_error import Precision, group_errors, index_errors, token_errors
from .checks_widening import widenings
from .oracle_block import HeadBlock, Retrieved
from .oracle_mass import FACTORS
from .oracle_numbers import group_scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .failure import Scene
    from .low import LowPrecision


def taken(scene: Scene, hb: HeadBlock, given: Retrieved) -> int:
    """Return C' in units of C, by how many candidates and selected positions there are (SPEC 4.4, 4.6, 4.9, 6.3)."""
    config, cold = hb.head.config, len(hb.head.page_at)
    candidates, selected = len(given.candidates), len(given.selected)
    least = min((2 if given.widened else 1) * config.candidate_tokens, cold)
    wanted = min(config.retrieve_tokens or 0, least)
    if config.max_missed_mass is None:
        scene.require(candidates == least, "4.4", "wrong number of candidates", got=candidates, expected=least)
        scene.require(selected == wanted, "4.6", "wrong number selected", got=selected, expected=wanted)
        return 0
    if (candidates, selected) == (least, wanted):
        return 0
    for factor in FACTORS[1:] if not given.widened else ():
        most = min(factor * config.candidate_tokens, cold)
        if (candidates, selected) == (most, most):
            return factor
    raise scene.mismatch("6.3", "no C' takes this many", got=(candidates, selected), expected=(least, wanted))


def check_limit(scene: Scene, hb: HeadBlock, given: Retrieved, low: LowPrecision, precision: Precision) -> None:
    """Check that the missed bound holds with what was taken, or all was attended, and would not hold with less."""
    smaller = FACTORS
    if not given.streamed:
        smaller = FACTORS[: FACTORS.index(taken(scene, hb, given))]
        scene.require(hb.enough(given, enlarged=False), "6.3", "more may be missed than the limit", got=given)
    for factor in smaller:
        surely = all(hb.enough(reading, enlarged=True) for reading in _readings(hb, factor, low, precision))
        what = "streamed where fewer tokens were enough" if given.streamed else "not the fewest tokens that are enough"
        scene.require(not surely, "6.3", what, got=given, enough=f"{factor} C")


def settled(hb: HeadBlock, low: LowPrecision, precision: Precision) -> Retrieved | None:
    """Return what a block takes where neither its limit nor a near tie is a matter of rounding; else None."""
    if not hb.members or not hb.head.page_at:
        return Retrieved([], [], False)
    for factor in FACTORS:
        readings = _readings(hb, factor, low, precision)
        if all(hb.enough(reading, enlarged=True) for reading in readings):
            return readings[0] if len(readings) == 1 else None
        if any(hb.enough(reading, enlarged=False) for reading in readings):
            return None
    return Retrieved([], [], True)


def _readings(hb: HeadBlock, factor: int, low: LowPrecision, precision: Precision) -> list[Retrieved]:
    """Return what C' = `factor` times C may have taken; widened or not, where near ties leave that open (SPEC 4.9)."""
    config, scale, members = hb.head.config, hb.modifiers.scale, hb.vectors
    positions, by_member = hb.head.index_scores(members, scale)
    if not positions:
        return [Retrieved([], [], False)]
    errors = index_errors(low, members, scale, precision)

    def ranked(most: int) -> list[list[int]]:
        sets = _sets(by_member, errors, most * config.candidate_tokens, config.group, precision)
        return [sorted(positions[n] for n in chosen) for chosen in sets]

    if factor:
        return [Retrieved(whole, whole, False) for whole in ranked(factor)]
    found: list[Retrieved] = []
    for widened in widenings(hb, low, precision):
        for candidates in ranked(2 if widened else 1):
            _, scores = hb.head.token_scores(members, candidates, scale)
            inner_errors = token_errors(low, members, candidates, scale, precision)
            inner = _sets(scores, inner_errors, config.retrieve_tokens or 0, config.group, precision)
            chosen = (sorted(candidates[n] for n in one) for one in inner)
            found += [Retrieved(candidates, selected, False, widened) for selected in chosen]
    return found


def _sets(
    by_member: Sequence[Sequence[float]],
    errors: Sequence[Sequence[float]],
    n: int,
    group: str,
    precision: Precision,
) -> list[list[int]]:
    """Return the n best by score, and of those that rounding leaves open the lightest and the heaviest."""
    scores = group_scores(by_member, group)
    margin = group_errors(by_member, errors, group, precision)
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    if n >= len(order):
        return [order]
    last, first_out = order[n - 1], order[n]
    sure = [i for i in order[:n] if scores[i] - margin[i] > scores[first_out] + margin[first_out]]
    free = [i for i in order if i not in sure and scores[i] + margin[i] >= scores[last] - margin[last]]
    if len(free) == n - len(sure):
        return [order[:n]]
    kinds = [sorted(free, key=lambda i: row[i]) for row in by_member]
    return [order[:n], *([*sure, *some[::way][: n - len(sure)]] for some, way in product(kinds, (1, -1)))]
