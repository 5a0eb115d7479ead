"""Keys packed to a few bits between the bounds that a page's mean and spread give: no scales but the page's own."""

from __future__ import annotations

import torch

from .scene import Scene
from .scores import mean_spread


def packed_logits(scene: Scene, page_tokens: int, bits: int) -> torch.Tensor:
    """Logits of the cold tokens by keys rounded to ``mean + spread * code``, code in [-1, 1]: ``[H, Q, G, T']``."""
    keys = scene.paged_keys(page_tokens)
    mean, spread = (part[:, :, None] for part in mean_spread(keys))
    levels = 2**bits - 1
    code = (keys - mean) / spread.clamp(min=1e-9)
    code = ((code + 1) / 2 * levels).round() / levels * 2 - 1
    packed = (mean + code * spread).flatten(1, 2)
    return scene.scale * torch.einsum("hqgd,htd->hqgt", scene.query, packed)
