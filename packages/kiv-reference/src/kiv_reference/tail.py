"""The tail: what was not selected still counts, by its mass and its mean value (SPEC 5.2, 5.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from .attend import Modifiers, Pseudo

if TYPE_CHECKING:
    from .view import HeadView

SHIFT_WEIGHT, SHIFT_POWER = 0.5, 4.0
"""How far, and how steeply, the selection moves the mean values (SPEC 5.4)."""


def value_shift(query: torch.Tensor, view: HeadView, selected: torch.Tensor, modifiers: Modifiers) -> torch.Tensor:
    """Return what each query ``[G, TQ, D]`` of the block adds to mean values: ``[G, TQ, DV]`` (SPEC 5.4)."""
    if selected.numel() == 0:
        return query.new_zeros(*query.shape[:2], view.index.value.shape[1])
    keys = view.keys(selected)
    scores = modifiers.scale * (query.flatten(0, 1) @ keys.T)  # [M, R]
    group = torch.logsumexp(scores - scores.amax(dim=1, keepdim=True), dim=0)  # [R], log S
    fade = torch.nn.functional.logsigmoid(-SHIFT_POWER * (group - group.mean()))
    weights = torch.softmax(modifiers.logits(query, keys) + fade, dim=2)
    return SHIFT_WEIGHT * (weights @ (view.values(selected) - view.index.value[view.pages(selected)]))


def tail(
    query: torch.Tensor, view: HeadView, candidates: torch.Tensor, selected: torch.Tensor, modifiers: Modifiers
) -> Pseudo:
    """Return one pseudo-token for each cold page with valid tokens that are not selected.

    Parameters
    ----------
    query : [G, TQ, D], in the dtype of computation
    candidates, selected : int64 [C], [R], positions
    """
    cold = view.cold_positions()
    left = cold[~torch.isin(cold, selected)]
    read = torch.isin(left, candidates)
    estimates = modifiers.cap(view.estimates(query, left, modifiers.scale))
    logits = torch.where(read, modifiers.logits(query, view.keys(left)), estimates)  # [G, TQ, K]
    pages = view.pages(left)
    named = cast("torch.Tensor", torch.unique(pages))
    masses = [torch.logsumexp(logits[:, :, pages == page], dim=2) for page in named]
    shift = value_shift(query, view, selected, modifiers)
    return Pseudo(torch.stack(masses, dim=2) if masses else logits, view.index.value[named][:, None, None] + shift)
