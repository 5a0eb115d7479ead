"""What the KIV versions of attention classes share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import EncoderDecoderCache

from ..attention.function import kiv_attention

if TYPE_CHECKING:
    from collections.abc import Callable


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    is_causal: bool = True,
) -> torch.Tensor:
    """Attend through the attention function "kiv".

    Parameters
    ----------
    query : [B, HQ, TQ, D]
    key, value : [B, H, T, D] and [B, H, T, DV]
    mask : whatever the mask function "kiv" made
    scale : float > 0
    is_causal : bool
        False in an encoder: what no mask means there.

    Returns
    -------
    Tensor [B, TQ, HQ, DV]
    """
    function = cast("Callable[..., tuple[torch.Tensor, None]]", kiv_attention)  # a decorator hides the signature
    return function(module, query, key, value, mask, scaling=scale, is_causal=is_causal)[0]


def self_attention_cache(cache: Any) -> Any:
    """Return the cache for self-attention: the first half of an `EncoderDecoderCache`, else `cache` itself."""
    return cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache


def additive(mask: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor | None:
    """Return `mask` as the class's own code adds it to scores: 0 where attention may look, else the lowest number."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    zero = torch.zeros((), dtype=like.dtype, device=mask.device)
    return torch.where(mask, zero, torch.finfo(like.dtype).min)


def split_heads(states: torch.Tensor, width: int) -> torch.Tensor:
    """Return [B, n, H * width] as [B, H, n, width]."""
    return states.view(*states.shape[:-1], -1, width).transpose(1, 2)
