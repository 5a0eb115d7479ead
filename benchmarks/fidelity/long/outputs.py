"""Attention outputs: sinks, the selected cold tokens and hot exactly, the rest of the cold tokens by a tail."""

from __future__ import annotations

import math

import torch

from .ranking import group_scores, mask
from .scene import PAGE_TOKENS, Scene

SHIFT, SHIFT_POWER = 0.5, 4.0
"""Weight of the correction of mean values that the selection suggests, and how steeply it fades (SPEC 5.4)."""


def value_shift(scene: Scene, selected: torch.Tensor, value_mean: torch.Tensor) -> torch.Tensor:
    """Tell from the selected ``[Q, R]`` how the others' values differ from their pages' means, ``[Q, G, DV]``."""
    logits = scene.cold_logits.gather(2, selected[:, None].expand(-1, scene.query.shape[1], -1))  # [Q, G, R]
    group = group_scores(logits).clamp_min(1e-30).log()
    fade = torch.nn.functional.softplus(SHIFT_POWER * (group - group.mean(dim=1, keepdim=True)))[:, None]
    deviation = scene.cold_value[selected] - value_mean[selected // PAGE_TOKENS]  # [Q, R, DV]
    return SHIFT * (logits - fade).softmax(dim=2) @ deviation


def with_page_tail(
    scene: Scene, candidates: torch.Tensor, selected: torch.Tensor, estimates: torch.Tensor
) -> torch.Tensor:
    """Attend with a pseudo-token for each page, whose mass is that of its unselected tokens (SPEC 5).

    Parameters
    ----------
    candidates : int64 [Q, C]
        Tokens whose exact logits are known.
    selected : int64 [Q, R]
        Those of them that are attended exactly, with sinks and hot.
    estimates : [Q, G, N]
        Logits of all others.

    Returns
    -------
    [Q, G, DV]
    """
    chosen = mask(selected, scene.cold_tokens)[:, None]
    value_mean = scene.cold_value.unflatten(0, (-1, PAGE_TOKENS)).mean(dim=1)
    rest = torch.where(mask(candidates, scene.cold_tokens)[:, None], scene.cold_logits, estimates)
    tail = rest.masked_fill_(chosen, -math.inf).unflatten(2, (-1, PAGE_TOKENS)).logsumexp(dim=3)  # [Q, G, pages]
    logits = scene.logits.clone()
    logits[..., scene.cold].masked_fill_(~chosen, -math.inf)
    total = torch.cat([logits, tail], dim=2).logsumexp(dim=2, keepdim=True)
    weights = (tail - total).exp_()
    shift = weights.sum(dim=2, keepdim=True) * value_shift(scene, selected, value_mean)
    return (logits - total).exp_() @ scene.value + weights @ value_mean + shift


def output_error(scene: Scene, output: torch.Tensor) -> torch.Tensor:
    """Return ‖o − o_full‖ / ‖o_full‖, ``[Q, G]``."""
    full = scene.full_output
    return (output - full).norm(dim=2) / full.norm(dim=2)
