"""Scores of pages, by a summary of their keys; a token has the score of its page."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .scene import Scene

Quantise = Callable[[torch.Tensor], torch.Tensor]


def spread_out(scores: torch.Tensor, page_tokens: int) -> torch.Tensor:
    """Scores of pages as those of their tokens."""
    return scores.repeat_interleave(page_tokens, dim=-1)


def mean_spread(keys: torch.Tensor, page_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean key of each page and the largest distance from it in each channel, ``[M, D]``, of ``[N, D]``."""
    paged = keys.unflatten(0, (-1, page_tokens))
    mean = paged.mean(dim=1)
    return mean, (paged - mean[:, None]).abs().amax(dim=1)


def mean_scores(scene: Scene, page_tokens: int, quantise: Quantise, spread_weight: float = 0.0) -> torch.Tensor:
    """q·mean + weight * Σ|q|·spread of each page, coded: ``[Q, G, M]``."""
    mean, spread = mean_spread(scene.cold_key, page_tokens)
    scores = scene.query @ quantise(mean).T
    if spread_weight:
        scores = scores + spread_weight * (scene.query.abs() @ quantise(spread).T)
    return scores


def box_scores(scene: Scene, page_tokens: int) -> torch.Tensor:
    """The most that a key in the box around a page's keys could score, as Quest has it: ``[Q, G, M]``."""
    paged = scene.cold_key.unflatten(0, (-1, page_tokens))
    high, low = paged.amax(dim=1), paged.amin(dim=1)
    return scene.query.clamp(min=0) @ high.T + scene.query.clamp(max=0) @ low.T
