"""Figures of one scene and one index: what is among the candidates, and how far the output is from full attention's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from kiv_reference.select import LATE

from .outputs import output_error, with_page_tail
from .ranking import group_scores, mask, ordered, selected

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .scene import Scene
    from .zoo import Index

TOP_TOKENS = (4, 64)
"""Recall is counted of the heaviest 4 and the heaviest 64 cold tokens."""

MOST_RETRIEVED = 1024


def retrieve_tokens(candidates: int) -> int:
    """Return R beside C `candidates`."""
    return max(1, min(MOST_RETRIEVED, candidates // 2))


def default_tokens(candidates: int) -> int:
    """Return R beside C `candidates` in the proportion of KIV's defaults, which is narrower."""
    return max(1, min(MOST_RETRIEVED, candidates // 4))


@dataclass(frozen=True)
class Truth:
    """What full attention finds heavy in a scene, for all indices.

    Attributes
    ----------
    top : int64 [Q, 4], int64 [Q, 64]
        The heaviest cold tokens, by mass summed over the group.
    top_of_head : int64 [Q, G, 4]
        Each query head's own.
    best : dict of [Q]
        Candidates -> cold mass of the R that exact scores of all cold tokens select.
    """

    top: tuple[torch.Tensor, ...]
    top_of_head: torch.Tensor
    best: dict[int, torch.Tensor]


def truth(scene: Scene, counts: Sequence[int]) -> Truth:
    """Find it."""
    mass = scene.cold_mass
    heaviest = mass.topk(max(TOP_TOKENS), dim=1).indices
    top = tuple(heaviest[:, :n] for n in TOP_TOKENS)
    most = max(map(retrieve_tokens, counts))
    exact = group_scores(scene.cold_logits).topk(most, dim=1).indices
    best = {count: mass.gather(1, exact[:, : retrieve_tokens(count)]).sum(dim=1) for count in counts}
    return Truth(top, scene.cold_logits.topk(TOP_TOKENS[0], dim=2).indices, best)


@dataclass(frozen=True)
class Found:
    """What an index finds with one number of candidates.

    Attributes
    ----------
    top4, top64 : [Q]
        Share of the 4 and of the 64 heaviest among the candidates.
    of_exact : [Q]
        Cold mass on the R selected, beside that on those that exact scores of all cold tokens select.
    recall_of_head : bool [Q, G, 4]
        Whether each head's own heaviest are among the candidates.
    error : [Q, G], or None
        Relative error of the output, of indices that have a tail.
    doubled, doubled_at_default : bool [Q]
        Whether candidates were doubled, and whether they would be with the R of `default_tokens`.
    """

    top4: torch.Tensor
    top64: torch.Tensor
    of_exact: torch.Tensor
    recall_of_head: torch.Tensor
    error: torch.Tensor | None
    doubled: torch.Tensor
    doubled_at_default: torch.Tensor


def figures(scene: Scene, index: Index, known: Truth, counts: Sequence[int]) -> dict[int, Found]:
    """Find the figures for each number of candidates, whose exact keys are read where they are not doubled."""
    scores = index.scores(scene)
    order = ordered(index.group(scores))
    return {count: _found(scene, index, known, scores, order, count) for count in counts}


def late(scene: Scene, order: torch.Tensor, count: int, retrieve: int) -> torch.Tensor:
    """Tell whether SPEC 4.9 doubles the first `count` of ``order [Q, N]``, of which R are selected: bool [Q]."""
    chosen = selected(scene.cold_logits, order[:, :count], retrieve)
    early, retrieved = 3 * count // 4, chosen.shape[1]
    unseen = (~mask(order[:, :early], scene.cold_tokens)).gather(1, chosen).sum(dim=1)
    return (LATE * (unseen - max(0, retrieved - early)) > retrieved) & (scene.cold_tokens > count)


def _found(scene: Scene, index: Index, known: Truth, scores: torch.Tensor, order: torch.Tensor, count: int) -> Found:
    """Find the figures for `count` candidates; the selected are as many where candidates are doubled."""
    retrieve, never = retrieve_tokens(count), torch.zeros(len(order), dtype=torch.bool)
    candidates, doubled, at_default = order[:, :count], never, never
    chosen = selected(scene.cold_logits, candidates, retrieve)
    if index.doubles:
        doubled, at_default = (late(scene, order, count, r) for r in (retrieve, default_tokens(count)))
        wide = order[:, : 2 * count]
        chosen = torch.where(doubled[:, None], selected(scene.cold_logits, wide, retrieve), chosen)
        # A query that does not double has its first candidate in place of those beyond the count: none is new.
        beyond = torch.arange(wide.shape[1]) >= count
        candidates = torch.where(beyond & ~doubled[:, None], wide[:, :1], wide)
    among = mask(candidates, scene.cold_tokens)
    error = None
    if index.estimates:
        error = output_error(scene, with_page_tail(scene, candidates, chosen, scores))
    heads = known.top_of_head.shape[1]
    top4, top64 = (among.gather(1, top).float().mean(dim=1) for top in known.top)
    return Found(
        top4=top4,
        top64=top64,
        of_exact=scene.cold_mass.gather(1, chosen).sum(dim=1) / known.best[count],
        recall_of_head=among[:, None].expand(-1, heads, -1).gather(2, known.top_of_head),
        error=error,
        doubled=doubled,
        doubled_at_default=at_default,
    )
