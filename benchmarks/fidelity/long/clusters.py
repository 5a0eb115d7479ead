"""Centroids of clusters of keys, as RetroInfer makes them: k-means on the sphere, segment by segment."""

from __future__ import annotations

import torch

from .pages import Quantise
from .scene import Scene

SEGMENT_TOKENS = 8192
ROUNDS = 5


def clustered(keys: torch.Tensor, tokens_each: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Centroids ``[M, D]`` of ``keys [N, D]``, and the centroid of each key, int64 ``[N]``.

    Keys are centred in their segment and go to the centroid of the nearest direction; evenly spaced keys are the first
    centroids.
    """
    centroids: list[torch.Tensor] = []
    owners: list[torch.Tensor] = []
    made = 0
    for segment in keys.split(SEGMENT_TOKENS):
        mean = segment.mean(dim=0)
        centred = segment - mean
        count = max(1, len(segment) // tokens_each)
        centre = centred[torch.linspace(0, len(segment) - 1, count).long()]
        for _ in range(ROUNDS):
            owner = (centred @ torch.nn.functional.normalize(centre, dim=1).T).argmax(dim=1)
            members = torch.bincount(owner, minlength=count).clamp_min(1)[:, None]
            centre = torch.zeros_like(centre).index_add_(0, owner, centred) / members
        centroids.append(centre + mean)
        owners.append(owner + made)
        made += count
    return torch.cat(centroids), torch.cat(owners)


def cluster_scores(scene: Scene, tokens_each: int, quantise: Quantise) -> torch.Tensor:
    """Scores of the tokens by their centroids, ``[Q, G, N]``."""
    centroids, owner = clustered(scene.cold_key, tokens_each)
    return (scene.query @ quantise(centroids).T)[..., owner]
