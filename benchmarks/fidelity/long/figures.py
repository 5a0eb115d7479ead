"""Figures of one scene and one index: what is among the candidates, and how far the output is from full attention's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from kiv_reference.select import LATE

from .outputs import output_error, with_page_tail, with_span_tail
from .ranking import group_scores, mask, ordered, selected
from .scene import Scene
from .zoo import EXACT, NEW, TODAY, Index

TOP_TOKENS = (4, 64)
"""Recall is counted of so many of the heaviest cold tokens."""

MOST_RETRIEVED = 1024


def retrieve_tokens(candidates: int) -> int:
    """R beside so many candidates."""
    return max(1, min(MOST_RETRIEVED, candidates // 2))


def default_tokens(candidates: int) -> int:
    """R beside so many candidates in the proportion of KIV's defaults, which is narrower."""
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
    cold : [Q]
        All cold mass.
    """

    top: tuple[torch.Tensor, ...]
    top_of_head: torch.Tensor
    best: dict[int, torch.Tensor]
    cold: torch.Tensor


def truth(scene: Scene, budgets: Sequence[int]) -> Truth:
    """Find it."""
    mass = scene.cold_mass
    heaviest = mass.topk(max(TOP_TOKENS), dim=1).indices
    top = tuple(heaviest[:, :n] for n in TOP_TOKENS)
    most = max(map(retrieve_tokens, budgets))
    exact = group_scores(scene.cold_logits).topk(most, dim=1).indices
    best = {budget: mass.gather(1, exact[:, : retrieve_tokens(budget)]).sum(dim=1) for budget in budgets}
    return Truth(top, scene.cold_logits.topk(TOP_TOKENS[0], dim=2).indices, best, mass.sum(dim=1))


@dataclass(frozen=True)
class Found:
    """What an index finds with one budget.

    Attributes
    ----------
    recall : [Q], [Q]
        Share of the 4 and of the 64 heaviest among the candidates.
    captured, ceiling : [Q]
        Share of the cold mass on the R selected, and on those that exact scores of all cold tokens select.
    recall_of_head : bool [Q, G, 4]
        Whether each head's own heaviest are among the candidates.
    error : [Q, G], or None
        Relative error of the output, of indices that have a tail.
    """

    recall: tuple[torch.Tensor, ...]
    captured: torch.Tensor
    ceiling: torch.Tensor
    recall_of_head: torch.Tensor
    error: torch.Tensor | None


def figures(scene: Scene, index: Index, known: Truth, budgets: Sequence[int]) -> dict[int, Found]:
    """Figures for each budget, the tokens whose exact keys are read."""
    scores = index.scores(scene)
    order = ordered(index.group(scores))
    return {budget: _found(scene, index, known, scores, order, budget, 1) for budget in budgets}


def widened_figures(
    scene: Scene, index: Index, known: Truth, budgets: Sequence[int]
) -> dict[int, tuple[Found, torch.Tensor, torch.Tensor]]:
    """Figures with twice the candidates where many of the selected are late (SPEC 4.9).

    Beside them where that is, bool [Q], and where it would be with the R of `default_tokens`.
    """
    scores = index.scores(scene)
    order = ordered(index.group(scores))
    found: dict[int, tuple[Found, torch.Tensor, torch.Tensor]] = {}
    for budget in budgets:
        widened = late(scene, order, budget, retrieve_tokens(budget))
        narrow, wide = (_found(scene, index, known, scores, order, budget, times) for times in (1, 2))
        at_default = late(scene, order, budget, default_tokens(budget))
        found[budget] = (_merged(widened, wide, narrow), widened, at_default)
    return found


def late(scene: Scene, order: torch.Tensor, budget: int, retrieve: int) -> torch.Tensor:
    """Whether SPEC 4.9 widens so many candidates, the first of ``order [Q, N]``, of which R are selected: bool [Q]."""
    chosen = selected(scene.cold_logits, order[:, :budget], retrieve)
    early, retrieved = 3 * budget // 4, chosen.shape[1]
    unseen = (~mask(order[:, :early], scene.cold_tokens)).gather(1, chosen).sum(dim=1)
    return (LATE * (unseen - max(0, retrieved - early)) > retrieved) & (scene.cold_tokens > budget)


def _merged(where: torch.Tensor, some: Found, others: Found) -> Found:
    """`some` for the queries ``where [Q]``, `others` for the others."""

    def chosen(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.where(where.reshape(-1, *[1] * (a.dim() - 1)), a, b)

    return Found(
        recall=tuple(map(chosen, some.recall, others.recall)),
        captured=chosen(some.captured, others.captured),
        ceiling=others.ceiling,
        recall_of_head=chosen(some.recall_of_head, others.recall_of_head),
        error=None if some.error is None or others.error is None else chosen(some.error, others.error),
    )


def _found(
    scene: Scene, index: Index, known: Truth, scores: torch.Tensor, order: torch.Tensor, budget: int, times: int
) -> Found:
    """Figures of `times` as many candidates as a budget, the selected as many as beside the budget itself."""
    candidates = order[:, : times * budget]
    among = mask(candidates, scene.cold_tokens)
    chosen = selected(scene.cold_logits, candidates, retrieve_tokens(budget))
    output = None
    if index is TODAY:
        output = with_span_tail(scene, candidates, chosen)
    elif index in (NEW, EXACT):
        output = with_page_tail(scene, candidates, chosen, scores)
    heads = known.top_of_head.shape[1]
    return Found(
        recall=tuple(among.gather(1, top).float().mean(dim=1) for top in known.top),
        captured=scene.cold_mass.gather(1, chosen).sum(dim=1) / known.cold,
        ceiling=known.best[budget] / known.cold,
        recall_of_head=among[:, None].expand(-1, heads, -1).gather(2, known.top_of_head),
        error=None if output is None else output_error(scene, output),
    )
