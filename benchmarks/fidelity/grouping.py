"""From scores of every query head to choices: group rules and the n best of a row."""

from __future__ import annotations

from typing import Literal

import torch

Group = Literal["exp_sum", "softmax_sum", "max", "head", "layer_max"]
"""`exp_sum` and `max` as in SPEC 4.3; `softmax_sum` normalises each head first; `head` lets every query head choose for
itself; `layer_max` takes the largest raw score over all heads of the layer, one choice for all of them."""


def group_scores(scores: torch.Tensor, group: Group) -> torch.Tensor:
    """One score an item for those who choose together: ``[H, Q, G, I]`` to ``[H, Q, 1 or G, I]``."""
    if group == "exp_sum":
        return torch.exp(scores - scores.amax(dim=3, keepdim=True)).sum(dim=2, keepdim=True)
    if group == "softmax_sum":
        return scores.softmax(dim=3).sum(dim=2, keepdim=True)
    if group == "max":
        return scores.amax(dim=2, keepdim=True)
    if group == "layer_max":
        return scores.amax(dim=(0, 2), keepdim=True).expand(scores.shape[0], -1, -1, -1)
    return scores


def best_mask(scores: torch.Tensor, n: int) -> torch.Tensor:
    """Mask of the `n` best of the last dimension; ties go to the lower index (SPEC 1.3)."""
    n = min(n, scores.shape[-1])
    mask = torch.zeros_like(scores, dtype=torch.bool)
    if n == 0:
        return mask
    threshold = scores.topk(n, dim=-1).values[..., -1:]
    above = scores > threshold
    level = scores == threshold
    room = n - above.sum(dim=-1, keepdim=True)
    return above | (level & (level.cumsum(dim=-1) <= room))
