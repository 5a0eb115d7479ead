"""Whether candidates and selection are the best: identical in the exact population, admissible in the floating one.

SPEC 4 and 6.3 say what is chosen, 11.1 and 11.2 what the two populations ask for.
"""

from __future__ import annotations

import itertools

from hypothesis import currently_in_test_context, event
from kiv_reference.admissible import violation

from .budgets import Precision, group_errors, page_errors, token_errors
from .claims import not_both
from .failure import Scene
from .identical import check_identical
from .low import LowPrecision
from .oracle import group_scores
from .oracle_mass import whole_pages
from .oracle_store import HeadBlock, Retrieved


def mark(text: str) -> None:
    """Count something in the statistics of Hypothesis, if a test of its is running."""
    if currently_in_test_context():
        event(text)


def check_retrieval(
    scene: Scene, hb: HeadBlock, given: Retrieved, low: LowPrecision, precision: Precision, exact: bool
) -> None:
    """Candidates and selection are the best ones (SPEC 4, 6.3, 11)."""
    if hb.block.mode != "retrieve" or not hb.members:
        streamed = hb.block.mode == "exact"
        scene.require(given == Retrieved([], [], streamed), "9.6", "a block that cannot retrieve did", got=given)
        return
    limited = hb.head.config.max_missed_mass is not None
    if exact and not limited:
        check_identical(scene, hb, given)
    if given.streamed:
        check_streamed(scene, hb, given, low, precision)
        return
    check_candidates(scene, hb, given, low, precision)
    check_selection(scene, hb, given, low, precision)


def check_candidates(scene: Scene, hb: HeadBlock, given: Retrieved, low: LowPrecision, precision: Precision) -> None:
    """The C best pages, best first, or as many as SPEC 6.3 took."""
    config, scale = hb.head.config, hb.modifiers.scale
    pages, by_member = hb.head.page_scores(hb.vectors, scale)
    least = min(config.candidate_pages, len(pages))
    enough = len(given.candidates) == least
    if config.max_missed_mass is not None:
        enough = least <= len(given.candidates) <= 4 * config.candidate_pages
    scene.require(enough, "4.4", "wrong number of candidates", got=len(given.candidates), expected=least)
    if not pages:
        return
    scores = group_scores(by_member, config.group)
    errors = group_errors(by_member, page_errors(low, hb.vectors, scale, precision), config.group, precision)
    places = [pages.index(j) for j in given.candidates]
    _admit(scene, "4.4", "candidate pages", scores, errors, places, pages)
    for better, worse in itertools.pairwise(places):
        ordered = scores[better] + errors[better] >= scores[worse] - errors[worse]
        scene.require(ordered, "9.6", "candidates not best first", got=given.candidates, scores=scores)


def check_selection(scene: Scene, hb: HeadBlock, given: Retrieved, low: LowPrecision, precision: Precision) -> None:
    """The R best tokens of the candidates, and the pages that SPEC 6.3 takes whole."""
    config, scale = hb.head.config, hb.modifiers.scale
    first = given.candidates[: config.candidate_pages]
    positions, by_member = hb.head.token_scores(hb.vectors, first, scale)
    if not positions:
        scene.require(not given.selected, "4.6", "a selection from no token", got=given.selected)
        return
    scores = group_scores(by_member, config.group)
    errors = group_errors(
        by_member, token_errors(low, hb.vectors, positions, scale, precision), config.group, precision
    )
    wanted = min(config.retrieve_tokens or 0, len(positions))
    if config.max_missed_mass is None:
        places = [positions.index(i) for i in given.selected]
        scene.require(len(places) == wanted, "4.6", "wrong number selected", got=len(places), expected=wanted)
        _admit(scene, "4.6", "selected positions", scores, errors, places, positions)
        return
    fits = [k for k in range(len(given.candidates) + 1) if _fits(hb, given, k, positions, scores, errors, wanted)]
    scene.require(bool(fits), "6.3", "not an admissible selection and the fewest whole pages", got=given)


def _whole(hb: HeadBlock, first: list[int], selected: list[int], enlarged: bool) -> int | None:
    """The k of SPEC 6.3 for pages ranked as `first`, then as the oracle ranks them."""
    rest = [j for j in hb.head.rank(hb.vectors, hb.modifiers.scale) if j not in first]
    queries = [(q, at, sink) for _, at, q, sink in hb.members]
    return whole_pages(hb.head, queries, first + rest, selected, hb.modifiers, enlarged)


def _fits(
    hb: HeadBlock,
    given: Retrieved,
    k: int,
    positions: list[int],
    scores: list[float],
    errors: list[float],
    wanted: int,
) -> bool:
    """Whether the selection is an admissible one plus the k best pages, and k the smallest that is enough."""
    whole = {i for j in given.candidates[:k] for i in hb.head.pages[j].positions}
    beside = [i for i in given.selected if i not in whole]
    if len(given.candidates) != min(max(k, hb.head.config.candidate_pages), len(hb.head.pages)):
        return False
    if not whole <= set(given.selected) or any(i not in positions for i in beside):
        return False
    room = wanted - len(beside)
    inside = [n for n, i in enumerate(positions) if i in whole]
    if not 0 <= room <= len(inside):
        return False
    others = [positions.index(i) for i in beside]
    readings = [chosen + others for chosen in _readings(hb, given.candidates, inside, positions, scores, errors, room)]
    admissible = [chosen for chosen in readings if violation(scores, errors, chosen) is None]
    for enlarged in (False, True):
        found = [_whole(hb, given.candidates, [positions[n] for n in chosen], enlarged) for chosen in admissible]
        if enlarged and not any(most is None or k <= most for most in found):
            return False
        if not enlarged and not any(least is not None and least <= k for least in found):
            return False
    return True


def _readings(
    hb: HeadBlock,
    candidates: list[int],
    inside: list[int],
    positions: list[int],
    scores: list[float],
    errors: list[float],
    room: int,
) -> list[list[int]]:
    """Which `room` tokens of the whole pages were selected as well: it does not show, and ties leave it open.

    The best by score; and where rounding may decide, those of the pages taken first, and those of the pages taken last:
    the extremes of what the missed bound can have been before these pages were taken.
    """
    by_score = sorted(inside, key=lambda n: -scores[n])
    if room == 0 or room == len(inside):
        return [by_score[:room]]
    last_in, first_out = by_score[room - 1], by_score[room]
    sure = {n for n in by_score[:room] if scores[n] - errors[n] > scores[first_out] + errors[first_out]}
    open_ = [n for n in inside if n not in sure and scores[n] + errors[n] >= scores[last_in] - errors[last_in]]
    page = {i: rank for rank, j in enumerate(candidates) for i in hb.head.pages[j].positions}
    early = sorted(open_, key=lambda n: page[positions[n]])
    free = room - len(sure)
    return [by_score[:room], [*sure, *early[:free]], [*sure, *early[::-1][:free]]]


def check_streamed(scene: Scene, hb: HeadBlock, given: Retrieved, low: LowPrecision, precision: Precision) -> None:
    """A head of a retrieving block attended to everything: SPEC 6.3 must have asked for it."""
    config, scale = hb.head.config, hb.modifiers.scale
    scene.require(config.max_missed_mass is not None, "6.3", "streamed without max_missed_mass")
    scene.require(not given.candidates and not given.selected, "9.6", "streamed, and retrieved", got=given)
    if not hb.head.pages:
        raise scene.mismatch("6.3", "streamed where nothing could be missed")
    _, by_member = hb.head.page_scores(hb.vectors, scale)
    scores = group_scores(by_member, config.group)
    errors = group_errors(by_member, page_errors(low, hb.vectors, scale, precision), config.group, precision)
    if _near_ties(scores, errors):
        mark("streamed: near ties, not judged")
        return
    selected = hb.head.select(hb.vectors, hb.head.rank(hb.vectors, scale)[: config.candidate_pages], scale)
    needed = _whole(hb, [], selected, enlarged=True) is None
    scene.require(needed, "6.3", "streamed where whole pages were enough")
    mark("streamed: needed")


def _near_ties(scores: list[float], errors: list[float]) -> bool:
    """Whether rounding may change the order."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    return any(scores[a] - errors[a] <= scores[b] + errors[b] for a, b in itertools.pairwise(order))


def _admit(
    scene: Scene,
    clause: str,
    what: str,
    scores: list[float],
    errors: list[float],
    chosen: list[int],
    names: list[int],
) -> None:
    """Raise if the choice is not admissible (SPEC 11.2)."""
    ranked = sorted(scores, reverse=True)
    if 0 < len(chosen) < len(scores):
        margin = ranked[len(chosen) - 1] - ranked[len(chosen)]
        mark(f"{what}: {'tie' if margin == 0 else 'near tie' if margin <= 2 * max(errors) else 'clear'}")
    found = violation(scores, errors, chosen)
    if found is not None:
        raise scene.mismatch(
            clause,
            f"{what} are not the best",
            not_both(scene, what, names[found.chosen], names[found.rejected]),
            got=sorted(names[i] for i in chosen),
            n_th_best_score=ranked[len(chosen) - 1],
            chosen=f"{names[found.chosen]} with score {scores[found.chosen]!r} +- {errors[found.chosen]:.3g}",
            rejected=f"{names[found.rejected]} with score {scores[found.rejected]!r} +- {errors[found.rejected]:.3g}",
            beyond_the_margin_by=found.excess,
        )
