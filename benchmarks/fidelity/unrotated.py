"""A page score from keys before their rotation: tokens of a page that mean the same then differ less.

The query is turned to the middle of each page instead, so a scan multiplies every page by a query of its own: it reads
as many bytes and computes more.
"""

from __future__ import annotations

import torch

from .scene import Scene
from .scores import BF16_BYTES, PageScore, mean_spread


def turn(vectors: torch.Tensor, positions: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotate ``[..., n, D]`` by `positions` ``[n]``, as rotary embeddings of two halves do; negative ones undo it."""
    half = vectors.shape[-1] // 2
    frequencies = theta ** -(torch.arange(half, dtype=torch.float64) / half)
    angles = positions.double()[:, None] * frequencies  # [n, D / 2]
    cos, sin = angles.cos().float(), angles.sin().float()
    first, second = vectors[..., :half], vectors[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def unrotated(weight: float) -> PageScore:
    """Mean and spread of the keys before rotation, and the query turned to the middle of the page."""

    def score(scene: Scene, page_tokens: int) -> torch.Tensor:
        places = torch.arange(scene.cold_start, scene.cold_stop)
        keys = turn(scene.key[:, scene.cold_start : scene.cold_stop], -places, scene.rope_theta)
        mean, spread = mean_spread(keys.unflatten(1, (-1, page_tokens)))  # [H, N, D]
        middles = places.double().unflatten(0, (-1, page_tokens)).mean(dim=1)
        found: list[torch.Tensor] = []
        for query in scene.query.unbind(dim=1):  # [H, G, D]; a few at a time, since each page has its own query
            turned = turn(query[:, :, None].expand(-1, -1, len(middles), -1), -middles, scene.rope_theta)
            near = torch.einsum("hgnd,hnd->hgn", turned, mean)
            found.append(near + weight * torch.einsum("hgnd,hnd->hgn", turned.abs(), spread))
        return scene.scale * torch.stack(found, dim=1)

    return PageScore(f"mean + {weight:g} spread before rotation", score, 2 * BF16_BYTES)
