"""How much softmax mass may have been left out (SPEC 6.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .estimate import code_weights
from .index import LEVELS

if TYPE_CHECKING:
    from .attend import Modifiers
    from .view import HeadView

FLOAT64 = 2.0**-52
"""Twice the relative error of an operation in float64, in which exact logits and sums are computed."""

LEAST = 2.0**-130
"""More than what is lost of scale * q where that is below the normal numbers of float32."""


def rounding(query: torch.Tensor, keys: torch.Tensor, scale: float) -> torch.Tensor:
    """Return what float64 may lose in scale * q . k: ``[G, TQ, K]`` of ``query [G, TQ, D]`` for ``keys [K, D]``."""
    return FLOAT64 * (query.shape[2] + 8) * scale * (query.abs() @ keys.abs().T)


def page_slack(query: torch.Tensor, view: HeadView, scale: float) -> torch.Tensor:
    """Return what no score of a page exceeds its estimate by, ``[G, TQ, N]``, rounding included (SPEC 6.2).

    `query` ``[G, TQ, D]`` is in the dtype of computation, as estimates and the index are.
    """
    index, asked = view.index, scale * query.abs().to(torch.float64) + LEAST
    weights, unit = code_weights(query, index, scale)
    missing = ((scale * query)[..., index.channels] * index.step - unit * weights).clamp(min=0)
    less = (LEVELS - 1) * missing.sum(dim=-1).to(torch.float64)
    # No key, and nothing that is added up to estimate its score, is larger.
    coded = torch.zeros_like(index.mean).scatter(1, index.channels, index.centre.abs() + LEVELS * index.step)
    size = index.mean.abs() + index.error + coded
    spread, magnitude = (asked @ part.to(torch.float64).T for part in (index.error, size))
    return spread + less + torch.finfo(query.dtype).eps * (query.shape[2] + 16) * (magnitude + less)


def upper_logits(query: torch.Tensor, view: HeadView, positions: torch.Tensor, modifiers: Modifiers) -> torch.Tensor:
    """Return cap(estimate) + slack of SPEC 6.2 for unread positions int64 [K]: float64 ``[G, TQ, K]``."""
    estimates = view.estimates(query, positions, modifiers.scale).to(torch.float64)
    estimates = estimates.masked_fill(~torch.isfinite(estimates), torch.inf)  # what is beyond float32 tells nothing
    return modifiers.cap(estimates) + page_slack(query, view, modifiers.scale)[..., view.pages(positions)]


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
    wide = query.to(torch.float64)

    def exact_logits(positions: torch.Tensor, side: int) -> torch.Tensor:
        seen, keys = positions[None, :] <= query_positions[:, None], view.keys(positions).to(torch.float64)
        logits = modifiers.logits(wide, keys) + side * rounding(wide, keys, modifiers.scale)
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
    share = torch.exp(missed - total + lost).nan_to_num(nan=1.0).clamp(max=1.0)
    return torch.where(missed == -torch.inf, 0.0, share)
