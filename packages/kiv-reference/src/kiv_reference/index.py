"""What is kept of a cold page so that its tokens can be ranked unread: four-bit codes and means (SPEC 3).

That few channels, chosen by where keys vary and queries look, rank tokens is from Double Sparsity (arXiv 2408.07092);
codes by channel, between the extremes of a group of tokens, are from KIVI (arXiv 2402.02750).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

LEVELS = 16
"""Codes of four bits (SPEC 3.3)."""

SAMPLE_TOKENS = 64
"""Positions of which one has its query sampled (SPEC 3.2)."""

SAMPLES = 16
"""Sampled positions before the boundary of a page that weigh its channels (SPEC 3.2)."""


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of scores, the index and sums for a dtype of keys (SPEC 1.2)."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class PageIndex(NamedTuple):
    """One page of one sequence, for every KV head; NaN where the page has no valid token (SPEC 3.1, 3.3)."""

    codes: torch.Tensor  # uint8 [H, P, M]
    channels: torch.Tensor  # int64 [H, M], the coded ones
    centre: torch.Tensor  # [H, M]
    step: torch.Tensor  # [H, M]
    mean: torch.Tensor  # [H, D]
    error: torch.Tensor  # [H, D], largest distance of a key from its approximate key (SPEC 6.2)
    value: torch.Tensor  # [H, DV], mean


def query_weights(sampled: torch.Tensor) -> torch.Tensor:
    """Weigh channels by the sampled queries ``[H, n, D]``: w ``[H, D]``, NaN where none was sampled (SPEC 3.2)."""
    if sampled.shape[1] == 0:
        return sampled.new_ones(sampled.shape[0], sampled.shape[2])
    largest = sampled.nan_to_num(nan=-1.0).amax(dim=1)
    return torch.where(largest < 0, 1.0, largest)


def index_page(
    key: torch.Tensor, value: torch.Tensor, valid: torch.Tensor, weights: torch.Tensor, coded: int
) -> PageIndex:
    """Make the index of one page.

    Parameters
    ----------
    key : [H, P, D]
    value : [H, P, DV]
    valid : bool [P]
    weights : [H, D], in the dtype of computation
    coded : int
        M, the number of coded channels.
    """
    heads, tokens, width = key.shape
    codes = torch.zeros(heads, tokens, coded, dtype=torch.uint8, device=key.device)
    key, value = key[:, valid].to(weights.dtype), value[:, valid].to(weights.dtype)
    if key.shape[1] == 0:
        none = key.new_full((heads, width), torch.nan)
        first = torch.arange(coded, device=key.device).expand(heads, coded)
        return PageIndex(
            codes, first, none[:, :coded], none[:, :coded], none, none, value.new_full(value.shape[::2], torch.nan)
        )
    low, high = key.amin(dim=1), key.amax(dim=1)
    centre = low / 2 + high / 2
    radius = high - centre
    channels = torch.sort(weights * radius, dim=1, descending=True, stable=True).indices[:, :coded]
    low, centre, step = low.gather(1, channels), centre.gather(1, channels), radius.gather(1, channels) / (LEVELS / 2)
    distance = key.gather(2, channels[:, None].expand(-1, key.shape[1], -1)) - low[:, None]
    code = torch.where(step[:, None] == 0, 0.0, distance / step[:, None]).floor().clamp(0, LEVELS - 1)
    codes[:, valid] = code.to(torch.uint8)
    mean = key.mean(dim=1)
    approximate = approximate_keys(codes[:, valid], channels, centre, step, mean)
    return PageIndex(codes, channels, centre, step, mean, (key - approximate).abs().amax(dim=1), value.mean(dim=1))


def approximate_keys(
    codes: torch.Tensor, channels: torch.Tensor, centre: torch.Tensor, step: torch.Tensor, mean: torch.Tensor
) -> torch.Tensor:
    """Approximate the keys ``[I, P, D]`` of I pages, or of a page's heads, from fields of their indices (SPEC 3.4)."""
    level = codes.to(mean.dtype) - (LEVELS - 1) / 2
    coded = centre[:, None] + level * step[:, None]
    whole = mean[:, None].repeat(1, codes.shape[1], 1)
    return whole.scatter(2, channels[:, None].expand(-1, codes.shape[1], -1), coded)
