"""How much softmax mass may have been left out, and how many pages to take so that little is (SPEC 6.2, 6.3)."""

from __future__ import annotations

import torch

from .attend import Modifiers
from .select import page_scores
from .view import HeadView

SUMMARY_ROUNDING = 2.0**-22
"""Relative error that a float32 mean and spread may carry, with room: the bound is computed in float64 from them."""


def upper_logits(query: torch.Tensor, view: HeadView, pages: torch.Tensor, modifiers: Modifiers) -> torch.Tensor:
    """log(n_j e^cap(b_j)) of SPEC 6.2 for each page: ``[G, TQ, K]`` in float64.

    Parameters
    ----------
    query : [G, TQ, D]
    pages : int64 [K]
    """
    flat = query.to(torch.float64).flatten(0, 1)
    mean, spread = view.mean[pages].to(torch.float64), view.spread[pages].to(torch.float64)
    bound = page_scores(flat, mean, spread, modifiers.scale, 1.0)
    rounding = SUMMARY_ROUNDING * modifiers.scale * (flat.abs() @ (mean.abs() + spread).T)
    logits = modifiers.cap(bound + rounding) + torch.log(view.count[pages].to(torch.float64))
    return logits.unflatten(0, query.shape[:2])


def missed_bounds(
    query: torch.Tensor,
    query_positions: torch.Tensor,
    view: HeadView,
    ranked: torch.Tensor,
    candidates: int,
    selected: torch.Tensor,
    most: int,
    modifiers: Modifiers,
) -> torch.Tensor:
    """The missed bound of SPEC 6.2 if the k best pages were attended whole, for every k from 0 to `most`.

    Parameters
    ----------
    query : [G, TQ, D]
    ranked : int64 [N'], pages that have a valid token, best first
    candidates : int
        How many of them are candidates (SPEC 4.4).
    selected : int64 [R], positions
    most : int
        At most the number of ranked pages; those beyond the candidates are read to know their exact mass.

    Returns
    -------
    Tensor float64 [G, TQ, most + 1]
    """
    query = query.to(torch.float64)

    def log_mass(positions: torch.Tensor) -> torch.Tensor:
        seen = positions[None, :] <= query_positions[:, None]
        logits = modifiers.logits(query, view.keys(positions).to(torch.float64))
        return torch.logsumexp(logits.masked_fill(~seen, -torch.inf), dim=2)

    attended = log_mass(torch.cat([view.always_attended(), selected]))
    if modifiers.sink_logits is not None:
        attended = torch.logaddexp(attended, modifiers.sink_logits.to(torch.float64))
    # Of each page whose keys are read, the mass of its tokens that were not selected: known exactly.
    rest = [view.page_positions(page) for page in ranked[: max(candidates, most)].tolist()]
    left = [log_mass(p[~torch.isin(p, selected)]) for p in rest]
    upper = upper_logits(query, view, ranked, modifiers)

    bounds: list[torch.Tensor] = []
    for k in range(most + 1):
        known = left[k : max(k, candidates)]
        unknown = upper[:, :, max(k, candidates) :]
        missed = torch.logsumexp(torch.cat([*(m[:, :, None] for m in known), unknown], dim=2), dim=2)
        held = torch.logsumexp(torch.stack([attended, *left[:k]], dim=2), dim=2)
        share = torch.exp(missed - torch.logaddexp(held, missed))
        bounds.append(torch.where(missed == -torch.inf, 0.0, share))
    return torch.stack(bounds, dim=2)
