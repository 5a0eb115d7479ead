"""Codes of single tokens: 4 bits of the channels at which recent queries look and in which a page's keys differ.

Estimates by a label of few channels follow Double Sparsity (arXiv 2408.07092) and SparQ (2312.04985), codes a channel
KIVI (2402.02750) and KVQuant (2401.18079).
"""

from __future__ import annotations

import torch
from kiv_reference.estimate import estimates
from kiv_reference.index import SAMPLES, index_page

from .scene import PAGE_TOKENS, SINK_TOKENS, Scene


def query_weights(scene: Scene) -> torch.Tensor:
    """Return a channel's largest query of all heads and the last samples before a page is cold: ``[pages, D]``."""
    largest = scene.sampled.abs().amax(dim=1)  # [S, D]
    pages = scene.cold_tokens // PAGE_TOKENS
    cold_from = SINK_TOKENS + PAGE_TOKENS * torch.arange(1, pages + 1) + scene.hot_tokens
    known = torch.searchsorted(scene.sampled_positions, cold_from)
    recent = (known[:, None] - 1 - torch.arange(SAMPLES)).clamp_min(0)
    return torch.where(known[:, None] > 0, largest[recent].amax(dim=1), 1.0)


def code_bytes(width: int, channels: int) -> float:
    """Count bytes a token: 4 bits a channel; for each page the channels' numbers, least, step, and the mean key."""
    channels = min(channels, width)
    return channels / 2 + (channels * (2 + 4 + 4) + 4 * width) / PAGE_TOKENS


def code_estimates(scene: Scene, channels: int) -> torch.Tensor:
    """Estimate the logits of the cold tokens by whole weights, as SPEC 4.2 has them: ``[Q, G, N]``."""
    paged = scene.cold_key.unflatten(0, (-1, PAGE_TOKENS))
    # The reference indexes a page's KV heads side by side: here it is the pages of one head.
    whole, no_value = torch.ones(PAGE_TOKENS, dtype=torch.bool), paged[..., :0]
    index = index_page(paged, no_value, whole, query_weights(scene), min(channels, paged.shape[2]))
    return estimates(scene.query, index, scale=1.0)
