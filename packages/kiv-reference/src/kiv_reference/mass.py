"""How much softmax mass may have been left out (SPEC 6.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .attend import Modifiers
    from .view import HeadView

ROUNDING = 2.0**-22
"""Relative error that a float32 error radius may carry, with room: the bound is computed in float64 from it."""

FLOAT64 = 2.0**-52
"""Twice the relative error of an operation in float64."""


def rounding(query: torch.Tensor, keys: torch.Tensor, scale: float) -> torch.Tensor:
    """Return what float64 may lose in scale * q . k: ``[G, TQ, K]`` of ``query [G, TQ, D]`` for ``keys [K, D]``."""
    return FLOAT64 * (query.shape[2] + 8) * scale * (query.abs() @ keys.abs().T)


def upper_logits(query: torch.Tensor, view: HeadView, positions: torch.Tensor, modifiers: Modifiers) -> torch.Tensor:
    """cap(b) of SPEC 6.2 for unread positions int64 [K]: ``[G, TQ, K]``, of ``query [G, TQ, D]`` in float64."""
    near = view.approximate_keys(positions).to(torch.float64)
    error = view.index.error[view.pages(positions)].to(torch.float64)
    slack = query.abs() @ error.T + ROUNDING * (query.abs() @ (near.abs() + error).T)
    return modifiers.cap(modifiers.scale * (query @ near.T + slack))


def missed_bound(
    query: torch.Tensor,
    query_positions: torch.Tensor,
    view: HeadView,
    candidates: torch.Tensor,
    selected: torch.Tensor,
    modifiers: Modifiers,
) -> torch.Tensor:
    """Return the missed bound (SPEC 6.2) of each query, float64 ``[G, TQ]``: missed rounds up, held down.

    Parameters
    ----------
    query : [G, TQ, D]
    candidates, selected : int64 [C], [R], positions
    """
    query = query.to(torch.float64)

    def exact_logits(positions: torch.Tensor, side: int) -> torch.Tensor:
        seen, keys = positions[None, :] <= query_positions[:, None], view.keys(positions).to(torch.float64)
        logits = modifiers.logits(query, keys) + side * rounding(query, keys, modifiers.scale)
        return logits.masked_fill(~seen, -torch.inf)

    attended = [exact_logits(torch.cat([view.always_attended(), selected]), -1)]
    if modifiers.sink_logits is not None:
        attended.append(modifiers.sink_logits.to(torch.float64)[:, :, None])
    cold = view.cold_positions()
    unread = cold[~torch.isin(cold, candidates)]
    left = candidates[~torch.isin(candidates, selected)]
    missed = torch.cat([exact_logits(left, 1), upper_logits(query, view, unread, modifiers)], dim=2).logsumexp(dim=2)
    held = torch.cat(attended, dim=2).logsumexp(dim=2)
    total = torch.logaddexp(held, missed)
    # What soft caps, logarithms and sums lose.
    lost = 4 * FLOAT64 * (missed.abs() + total.abs() + (modifiers.softcap or 0.0) + view.key.shape[0])
    return torch.where(missed == -torch.inf, 0.0, torch.exp(missed - total + lost).clamp(max=1.0))
