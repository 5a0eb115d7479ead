"""Page scores: how promising a page looks to a query, from a summary of its keys alone.

A page score takes a scene and a page size and gives ``[H, Q, G, N]``, in units of logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .scene import Scene

Scorer = Callable[[Scene, int], torch.Tensor]

BF16_BYTES = 2.0


@dataclass(frozen=True)
class PageScore:
    """A page score and what its summary costs.

    Attributes
    ----------
    name : str
    score : callable
    channel_bytes : float
        Bytes of summary for each key channel of each page; 0 for scores that no summary gives (ceilings).
    coarse : bool
        Whether these bytes are all that is looked at; else the summary can be scanned in 8 bits, as kiv-fast does,
        and the few pages that decide are read exactly.
    """

    name: str
    score: Scorer
    channel_bytes: float
    coarse: bool = False


def dot(scene: Scene, vectors: torch.Tensor) -> torch.Tensor:
    """Logits of ``vectors [H, N, D]``, ``[H, Q, G, N]``."""
    return scene.scale * torch.einsum("hqgd,hnd->hqgn", scene.query, vectors)


def weigh_spread(scene: Scene, spread: torch.Tensor) -> torch.Tensor:
    """Σ_d |q_d| spread_d, scaled, for ``spread [H, N, D]``: ``[H, Q, G, N]``."""
    return scene.scale * torch.einsum("hqgd,hnd->hqgn", scene.query.abs(), spread)


def mean_spread(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and largest deviation from it, each ``[H, N, D]``, of ``keys [H, N, P, D]`` (SPEC 3.1)."""
    mean = keys.mean(dim=2)
    return mean, (keys - mean[:, :, None]).abs().amax(dim=2)


def mean_plus_spread(weight: float) -> PageScore:
    """KIV's score: q·mean + weight * Σ|q|·spread (SPEC 4.2); weight 0 is the page mean."""

    def score(scene: Scene, page_tokens: int) -> torch.Tensor:
        mean, spread = mean_spread(scene.paged_keys(page_tokens))
        return dot(scene, mean) + weight * weigh_spread(scene, spread)

    if weight == 0:
        return PageScore("page mean", score, BF16_BYTES)
    return PageScore(f"mean + {weight:g} spread", score, 2 * BF16_BYTES)


def _box(scene: Scene, page_tokens: int) -> torch.Tensor:
    keys = scene.paged_keys(page_tokens)
    high, low = keys.amax(dim=2), keys.amin(dim=2)
    positive, negative = scene.query.clamp(min=0), scene.query.clamp(max=0)
    up = torch.einsum("hqgd,hnd->hqgn", positive, high)
    return scene.scale * (up + torch.einsum("hqgd,hnd->hqgn", negative, low))


def _midpoint(scene: Scene, page_tokens: int) -> torch.Tensor:
    return (dot(scene, scene.paged_keys(page_tokens).mean(dim=2)) + _box(scene, page_tokens)) / 2


def _true_maximum(scene: Scene, page_tokens: int) -> torch.Tensor:
    return scene.cold_logits.unflatten(3, (-1, page_tokens)).amax(dim=4)


def _true_mass(scene: Scene, page_tokens: int) -> torch.Tensor:
    return scene.cold_logits.unflatten(3, (-1, page_tokens)).logsumexp(dim=4)


PAGE_MEAN = mean_plus_spread(0.0)
BOX = PageScore("box", _box, 2 * BF16_BYTES)
MIDPOINT = PageScore("midpoint", _midpoint, 3 * BF16_BYTES)
TRUE_MAXIMUM = PageScore("page's true maximum", _true_maximum, 0.0)
TRUE_MASS = PageScore("page's true mass", _true_mass, 0.0)
