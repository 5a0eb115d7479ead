"""From the tokens of a store to a snapshot, and back (SPEC 9.7, 9.8)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from .partition import partition
from .snapshot import UNSEEN, Snapshot, TensorPages
from .tokens import Tokens

if TYPE_CHECKING:
    from .config import KIVConfig


def snapshot_of(tokens: Tokens, config: KIVConfig) -> Snapshot:
    """Make a snapshot of tokens that are partitioned at their end; no two sequences share a page."""
    unseen = ~tokens.valid[:, None, :, None]
    key, value = (part.tensor.masked_fill(unseen, 0) for part in (tokens.key, tokens.value))
    part = partition(config, tokens.length)
    begin, stop = part.cold_start, part.cold_start + part.pages * part.page_tokens

    def in_pages(states: torch.Tensor) -> torch.Tensor:  # [B, H, T, W] -> [N B, H, P, W]
        batch, heads, _, width = states.shape
        pages = states[:, :, begin:stop].reshape(batch, heads, part.pages, part.page_tokens, width)
        return pages.permute(2, 0, 1, 3, 4).flatten(0, 1)

    def beside(states: torch.Tensor) -> torch.Tensor:
        return torch.cat([states[:, :, :begin], states[:, :, stop:]], dim=2)

    numbers = np.arange(part.pages * len(key), dtype=np.int32).reshape(part.pages, len(key))
    return Snapshot(
        config=config,
        pages=np.moveaxis(numbers, 0, 1),
        cold=TensorPages(in_pages(key), in_pages(value)),
        key=beside(key),
        value=beside(value),
        valid=None if bool(tokens.valid.all()) else tokens.valid.clone(),
        sampled=tokens.sampled.tensor.nan_to_num(nan=UNSEEN).to(key.dtype),
        finite=bool(torch.isfinite(value).all()),
    )


def tokens_of(snapshot: Snapshot) -> Tokens:
    """Make the tokens of a snapshot; the index of their pages is made anew when it is needed."""
    sinks, size = snapshot.config.sink_tokens, snapshot.config.page_tokens
    cold, sequences = len(snapshot.cold), torch.from_numpy(snapshot.pages).long()

    def whole(recent: torch.Tensor, values: bool) -> torch.Tensor:  # [B, H, T, W]
        pages = snapshot.read_pages(values, 0, cold)[sequences].to(recent.device)  # [B, N, H, P, W]
        between = pages.transpose(1, 2).reshape(*recent.shape[:2], sequences.shape[1] * size, recent.shape[3])
        return torch.cat([recent[:, :, :sinks], between, recent[:, :, sinks:]], dim=2)

    key, value = whole(snapshot.key, False), whole(snapshot.value, True)
    tokens = Tokens.like(key, value, snapshot.config)
    tokens.append(key, value, snapshot.valid)
    tokens.pending = 0
    sampled = snapshot.sampled.to(key.device, tokens.sampled.tensor.dtype)
    tokens.sampled.append(sampled.masked_fill(sampled == UNSEEN, torch.nan))
    return tokens
