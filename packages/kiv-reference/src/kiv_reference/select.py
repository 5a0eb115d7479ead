"""Which pages and which tokens a query block retrieves (SPEC 4)."""

from __future__ import annotations

import torch

from .config import Group, KIVConfig
from .view import HeadView


def best(scores: torch.Tensor, n: int) -> torch.Tensor:
    """Indices of the `n` best of ``[I]``: higher score first, then lower index (SPEC 1.3); int64, best first."""
    return torch.sort(scores, descending=True, stable=True).indices[:n]


def group_scores(scores: torch.Tensor, group: Group) -> torch.Tensor:
    """One score for each item from those of all members (SPEC 4.3).

    Parameters
    ----------
    scores : [M, I]
        M members of the block, I items.

    Returns
    -------
    Tensor [I]
    """
    if group == "max":
        return scores.amax(dim=0)
    return torch.exp(scores - scores.amax(dim=1, keepdim=True)).sum(dim=0)


def page_scores(
    members: torch.Tensor, mean: torch.Tensor, spread: torch.Tensor, scale: float, spread_weight: float
) -> torch.Tensor:
    """Score of every page for every member (SPEC 4.2).

    Parameters
    ----------
    members : [M, D]
        Queries of the block.
    mean, spread : [N, D]

    Returns
    -------
    Tensor [M, N]
    """
    return scale * (members @ mean.T + spread_weight * (members.abs() @ spread.T))


def rank_pages(view: HeadView, members: torch.Tensor, scale: float, config: KIVConfig) -> torch.Tensor:
    """All cold pages that have a valid token, best first; int64 (SPEC 4.4)."""
    pages = view.pages()
    if pages.numel() == 0:
        return pages
    scores = page_scores(members, view.mean[pages], view.spread[pages], scale, config.spread_weight)
    return pages[best(group_scores(scores, config.group), pages.numel())]


def select_tokens(
    view: HeadView, members: torch.Tensor, candidates: torch.Tensor, scale: float, config: KIVConfig
) -> torch.Tensor:
    """The selected positions, ascending; int64 (SPEC 4.5, 4.6)."""
    assert config.retrieve_tokens is not None, "exact mode selects nothing"
    if candidates.numel() == 0:
        return candidates
    # Positions in ascending order, so that "lower index" is "lower position".
    positions = torch.cat([view.page_positions(int(j)) for j in candidates.sort().values])
    scores = scale * (members @ view.keys(positions).T)  # [M, K]
    chosen = best(group_scores(scores, config.group), config.retrieve_tokens)
    return positions[chosen].sort().values
