"""From scores of the query heads to one order of the tokens, and from an order to what is attended."""

from __future__ import annotations

import torch


def group_scores(scores: torch.Tensor) -> torch.Tensor:
    """Sum the exponentials of a group's heads (SPEC 4.3): ``[Q, G, M]`` to ``[Q, M]``."""
    return (scores - scores.amax(dim=2, keepdim=True)).exp_().sum(dim=1)


def by_turns(scores: torch.Tensor) -> torch.Tensor:
    """Score for heads that choose each for itself, ``[Q, G, M]`` to ``[Q, M]``.

    The best n of it are the union of as many choices a head as they hold.
    """
    order = scores.argsort(dim=2, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(2, order, torch.arange(order.shape[2]).expand_as(order))
    return -rank.amin(dim=1).float()


def ordered(scores: torch.Tensor) -> torch.Tensor:
    """Order tokens from best to worst, ties to the lower index: int64 ``[Q, N]``."""
    return scores.argsort(dim=1, descending=True, stable=True)


def selected(cold_logits: torch.Tensor, candidates: torch.Tensor, retrieve_tokens: int) -> torch.Tensor:
    """Select the best candidates by exact scores: of ``[Q, G, N]`` and int64 ``[Q, C]`` tokens int64 ``[Q, R]``."""
    wanted = candidates[:, None].expand(-1, cold_logits.shape[1], -1)
    best = group_scores(cold_logits.gather(2, wanted)).topk(min(retrieve_tokens, candidates.shape[1]), dim=1)
    return candidates.gather(1, best.indices)


def mask(tokens: torch.Tensor, count: int) -> torch.Tensor:
    """Return bool ``[Q, count]`` of int64 ``[Q, n]`` tokens."""
    return torch.zeros(len(tokens), count, dtype=torch.bool).scatter_(1, tokens, True)
