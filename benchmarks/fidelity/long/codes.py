"""Codes of single tokens: 4 bits of the channels at which recent queries look and in which a page's keys differ.

Estimates by a label of few channels follow Double Sparsity (arXiv 2408.07092) and SparQ (2312.04985), codes a channel
KIVI (2402.02750) and KVQuant (2401.18079).
"""

from __future__ import annotations

import torch
from kiv_reference.index import LEVELS, SAMPLES

from .scene import PAGE_TOKENS, SINK_TOKENS, Scene


def query_weights(scene: Scene) -> torch.Tensor:
    """Return a channel's largest query of all heads and the last samples before a page is cold: ``[pages, D]``."""
    largest = scene.sampled.abs().amax(dim=1)  # [S, D]
    pages = scene.cold_tokens // PAGE_TOKENS
    cold_from = SINK_TOKENS + PAGE_TOKENS * torch.arange(1, pages + 1) + scene.hot_tokens
    known = torch.searchsorted(scene.sampled_positions, cold_from)
    recent = (known[:, None] - 1 - torch.arange(SAMPLES)).clamp_min(0)
    return torch.where(known[:, None] > 0, largest[recent].amax(dim=1), 1.0)


def coded_keys(paged: torch.Tensor, weights: torch.Tensor, channels: int) -> torch.Tensor:
    """Code and decode keys: ``[pages, P, D]``, of channels without a code the page's mean.

    Parameters
    ----------
    paged : float32 [pages, P, D]
    weights : float32 [pages, D]
        How much a channel counts.
    channels : int
        Channels of a page with codes, those of the largest weight times range; ties to the lower index.
    """
    low, high = paged.amin(dim=1), paged.amax(dim=1)
    middle = low / 2 + high / 2
    radius = high - middle
    chosen = (weights * radius).argsort(dim=1, descending=True, stable=True)[:, :channels]

    def of_chosen(table: torch.Tensor) -> torch.Tensor:
        return table.gather(1, chosen)[:, None]  # [pages, 1, channels]

    step = of_chosen(radius) / (LEVELS / 2)
    wide = chosen[:, None].expand(-1, paged.shape[1], -1)
    codes = ((paged.gather(2, wide) - of_chosen(low)) / step).nan_to_num(0.0).floor().clamp(0, LEVELS - 1)
    decoded = of_chosen(middle) + (codes - (LEVELS - 1) / 2) * step
    return paged.mean(dim=1, keepdim=True).expand_as(paged).scatter(2, wide, decoded)


def code_bytes(width: int, channels: int) -> float:
    """Count bytes a token: 4 bits a channel; for each page the channels' numbers, least, step, and the mean key."""
    channels = min(channels, width)
    return channels / 2 + (channels * (2 + 4 + 4) + 4 * width) / PAGE_TOKENS


def code_estimates(scene: Scene, channels: int) -> torch.Tensor:
    """Estimate the logits of the cold tokens, ``[Q, G, N]``."""
    paged = scene.cold_key.unflatten(0, (-1, PAGE_TOKENS))
    return scene.query @ coded_keys(paged, query_weights(scene), channels).flatten(0, 1).T
