"""Retrieval in the exact population, where nothing but the rule for ties decides (SPEC 11.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .claims import of_head, reported
from .oracle_numbers import group_scores

if TYPE_CHECKING:
    from .failure import Scene
    from .oracle_block import HeadBlock, Retrieved


def check_identical(scene: Scene, hb: HeadBlock, given: Retrieved, factor: int) -> None:
    """Check candidates and selection of the exact population, ties included (SPEC 11.1); `factor` as in `taken`."""
    head, scale = hb.head, hb.modifiers.scale
    expected = hb.taken(head.rank(hb.vectors, scale), factor)
    claim = f"{of_head(scene, 'widened')}.item() is {expected.widened}"
    alike = given.widened == expected.widened
    scene.require(alike, "4.9", "wrongly widened or not", claim, got=given.widened, expected=expected.widened)
    ranked = (
        ("4.4", "wrong candidates", "candidate_positions", given.candidates, expected.candidates),
        ("4.6", "wrong selection", "selected_positions", given.selected, expected.selected),
    )
    for clause, what, field, got, right in ranked:
        if got != right:
            found = (
                head.index_scores(hb.vectors, scale)
                if clause == "4.4"
                else head.token_scores(hb.vectors, expected.candidates, scale)
            )
            scores = dict(zip(found[0], group_scores(found[1], head.config.group), strict=True))
            facts = {
                "got": got,
                "expected": right,
                "chosen": _scored(scores, got, right),
                "should_be": _scored(scores, right, got),
                "tie_rule": "of equal scores the lower index is the better one (SPEC 1.3)",
            }
            raise scene.mismatch(clause, what, f"{reported(scene, field)} == {right}", **facts)


def _scored(scores: dict[int, float], mine: list[int], other: list[int]) -> str:
    """Return the first item that the other has not, or has elsewhere, with its score."""
    alone = [i for i in mine if i not in other]
    moved = [a for a, b in zip(mine, other, strict=False) if a != b]
    item = next(iter(alone or moved), None)
    return "none" if item is None else f"{item} with score {scores.get(item)!r}"
