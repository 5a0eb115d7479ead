"""Whether candidates and selection are the best: identical in the exact population, admissible in the floating one.

SPEC 4 says what is chosen, 11.1 and 11.2 what the two populations ask for; `checks_widening` has SPEC 4.9,
`checks_limit` 6.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import currently_in_test_context, event
from kiv_reference.admissible import violation

from .allowed_error import Precision, group_errors, index_errors, token_errors
from .checks_limit import check_limit, taken
from .checks_widening import check_widening
from .claims import not_both
from .identical import check_identical
from .oracle_block import HeadBlock, Retrieved
from .oracle_numbers import group_scores

if TYPE_CHECKING:
    from .failure import Scene
    from .low import LowPrecision


def mark(text: str) -> None:
    """Count something in the statistics of Hypothesis, if a test of its is running."""
    if currently_in_test_context():
        event(text)


def check_retrieval(
    scene: Scene, hb: HeadBlock, given: Retrieved, low: LowPrecision, precision: Precision, exact: bool
) -> None:
    """Check that candidates and selection are the best ones (SPEC 4, 6.3, 11)."""
    if hb.block.mode != "retrieve" or not hb.members:
        streamed = hb.block.mode == "exact"
        scene.require(given == Retrieved([], [], streamed), "9.6", "a block that cannot retrieve did", got=given)
        return
    limited = hb.head.config.max_missed_mass is not None
    if given.streamed:
        scene.require(limited, "6.3", "streamed without max_missed_mass")
        scene.require(given == Retrieved([], [], True), "9.6", "streamed, and retrieved", got=given)
    else:
        if exact and not limited:  # tells more than a number
            check_identical(scene, hb, given, 0)
        factor = taken(scene, hb, given)
        if exact:
            check_identical(scene, hb, given, factor)
        check_candidates(scene, hb, given, low, precision)
        if factor == 0:
            check_selection(scene, hb, given, low, precision)
            if not exact:
                check_widening(scene, hb, given, low, precision)
            mark(f"widened: {given.widened}")
    if limited:
        check_limit(scene, hb, given, low, precision)


def check_candidates(scene: Scene, hb: HeadBlock, given: Retrieved, low: LowPrecision, precision: Precision) -> None:
    """Check that, as many as there are, they are the best by their estimates."""
    scale, group = hb.modifiers.scale, hb.head.config.group
    positions, by_member = hb.head.index_scores(hb.vectors, scale)
    if positions:
        scores = group_scores(by_member, group)
        errors = group_errors(by_member, index_errors(low, hb.vectors, scale, precision), group, precision)
        places = [positions.index(i) for i in given.candidates]
        _admit(scene, "4.4", "candidate positions", scores, errors, places, positions)


def check_selection(scene: Scene, hb: HeadBlock, given: Retrieved, low: LowPrecision, precision: Precision) -> None:
    """Check that, as many as there are, they are the best of the candidates by their scores."""
    scale, group = hb.modifiers.scale, hb.head.config.group
    positions, by_member = hb.head.token_scores(hb.vectors, given.candidates, scale)
    if positions:
        scores = group_scores(by_member, group)
        errors = token_errors(low, hb.vectors, positions, scale, precision)
        errors = group_errors(by_member, errors, group, precision)
        places = [positions.index(i) for i in given.selected]
        _admit(scene, "4.6", "selected positions", scores, errors, places, positions)


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
