"""Selections that a model makes itself (DeepSeek sparse attention and its kin), for layers that are not KIV's.

Under the names "sdpa" and "eager" such a model puts its selection into the mask; under any other name it passes it on
as an argument, and whoever ignores that attends to everything.
"""

from __future__ import annotations

from typing import Any, cast

import torch


def with_selection(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    indices: torch.Tensor | None,
    block_indices: torch.Tensor | None,
) -> torch.Tensor | None:
    """Return `mask` less the keys that the model did not select.

    Parameters
    ----------
    query : [B, HQ, TQ, D]
    key : [B, H, T, D]
    mask : None, bool or float, broadcast to [B, HQ, TQ, T]
    indices : int [B, TQ, n], optional
        Selected keys of each query.
    block_indices : int [B, groups, TQ, n], optional
        Selected blocks of keys of each query and group of heads, -1 where there is none; the module's indexer says how
        long a block is.
    """
    if indices is not None:
        keep = torch.zeros(*indices.shape[:2], key.shape[2], dtype=torch.bool, device=key.device)
        mask = _cut(query, key, mask, keep.scatter_(-1, indices.long(), True)[:, None])
    if block_indices is not None:
        size = int(cast("Any", module).indexer.block_size)
        blocks = -(-key.shape[2] // size)
        keep = torch.zeros(*block_indices.shape[:3], blocks + 1, dtype=torch.bool, device=key.device)
        keep.scatter_(-1, block_indices.long().masked_fill(block_indices < 0, blocks), True)
        keep = keep[..., :blocks].repeat_interleave(size, dim=-1)[..., : key.shape[2]]
        mask = _cut(query, key, mask, keep.repeat_interleave(query.shape[1] // keep.shape[1], dim=1))
        if mask.dtype == torch.bool:  # as the model spells it, which decides what a query without any key gets
            zero = torch.zeros((), dtype=query.dtype, device=mask.device)
            mask = torch.where(mask, zero, torch.finfo(query.dtype).min)
    return mask


def _cut(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, keep: torch.Tensor) -> torch.Tensor:
    if mask is None:
        position = torch.arange(key.shape[2], device=key.device)
        mask = position <= position[key.shape[2] - query.shape[2] :, None]  # [TQ, T], causal
    if mask.dtype == torch.bool:
        return mask & keep
    return mask.masked_fill(~keep, torch.finfo(mask.dtype).min)
