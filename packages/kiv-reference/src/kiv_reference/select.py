"""Which tokens a query block ranks by estimates, reads and selects (SPEC 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from .config import Group, KIVConfig
    from .view import HeadView

LATE = 16
"""Selected tokens of which one may be late before the candidates are doubled (SPEC 4.9)."""


class Retrieval(NamedTuple):
    """What a block retrieves."""

    candidates: torch.Tensor  # int64 [C], positions, ascending
    selected: torch.Tensor  # int64 [R], positions, ascending
    streamed: bool = False
    widened: bool = False


def best(scores: torch.Tensor, n: int) -> torch.Tensor:
    """Return indices of the `n` best of ``[I]``: higher score first, then lower index (SPEC 1.3); int64, best first."""
    return torch.sort(scores, descending=True, stable=True).indices[:n]


def group_scores(scores: torch.Tensor, group: Group) -> torch.Tensor:
    """Return one score for each item from those of all members (SPEC 4.3).

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


def rank_cold(view: HeadView, members: torch.Tensor, scale: float, config: KIVConfig) -> torch.Tensor:
    """Return all valid cold positions, best first by the group score of the estimates; int64 (SPEC 4.2, 4.4)."""
    positions = view.cold_positions()
    if positions.numel() == 0:
        return positions
    estimates = view.estimates(members, positions, scale)  # [M, K]
    return positions[best(group_scores(estimates, config.group), positions.numel())]


def select_tokens(
    view: HeadView, members: torch.Tensor, candidates: torch.Tensor, scale: float, config: KIVConfig
) -> torch.Tensor:
    """Return the selected positions among `candidates`, both ascending; int64 (SPEC 4.5, 4.6)."""
    assert config.retrieve_tokens is not None, "exact mode selects nothing"
    if candidates.numel() == 0:
        return candidates
    scores = scale * (members @ view.keys(candidates).T)  # [M, C]
    chosen = best(group_scores(scores, config.group), config.retrieve_tokens)
    return candidates[chosen].sort().values


def late(ranked: torch.Tensor, selected: torch.Tensor, config: KIVConfig) -> bool:
    """Tell whether more is selected from the last quarter of candidates than good estimates leave there (SPEC 4.9)."""
    early = 3 * config.candidate_tokens // 4
    unseen = int((~torch.isin(selected, ranked[:early])).sum())
    return LATE * (unseen - max(0, selected.numel() - early)) > selected.numel()


def choose(view: HeadView, members: torch.Tensor, ranked: torch.Tensor, scale: float, config: KIVConfig) -> Retrieval:
    """Return the candidates of all cold positions, `ranked` best first, and their selection (SPEC 4.4, 4.6, 4.9)."""
    most = config.candidate_tokens
    candidates = ranked[:most].sort().values
    selected = select_tokens(view, members, candidates, scale, config)
    if ranked.numel() <= most or not late(ranked, selected, config):
        return Retrieval(candidates, selected)
    candidates = ranked[: 2 * most].sort().values
    return Retrieval(candidates, select_tokens(view, members, candidates, scale, config), widened=True)
