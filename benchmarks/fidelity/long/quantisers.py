"""Few-bit numbers: what a table holds after it was coded and decoded, and the bytes of its scales."""

from __future__ import annotations

import torch

RUN = 1024
"""Rows that share a scale, where nothing else is said."""

GROUP_CHANNELS = 16
"""Channels of a row that share a scale in `by_groups`."""

LEAST_SCALE = 1e-9


def by_channel(table: torch.Tensor, bits: int, run: int = RUN) -> torch.Tensor:
    """Code ``[M, D]`` with the least and greatest of a channel in `run` rows as the end points of its codes."""
    coded = torch.empty_like(table)
    for rows, out in zip(table.split(run), coded.split(run), strict=True):
        low, high = rows.amin(dim=0), rows.amax(dim=0)
        step = ((high - low) / (2**bits - 1)).clamp_min(LEAST_SCALE)
        torch.addcmul(low, ((rows - low) / step).round(), step, out=out)
    return coded


def by_groups(table: torch.Tensor, bits: int, run: int = RUN) -> torch.Tensor:
    """Code ``[M, D]`` centred and scaled by a channel's mean and deviation, then a scale for 16 channels of a row."""
    coded = torch.empty_like(table)
    half = 2 ** (bits - 1)
    for rows, out in zip(table.split(run), coded.split(run), strict=True):
        mean = rows.mean(dim=0)
        deviation = rows.std(dim=0, unbiased=False).clamp_min(LEAST_SCALE)
        grouped = ((rows - mean) / deviation).unflatten(1, (-1, GROUP_CHANNELS))
        scale = grouped.abs().amax(dim=2, keepdim=True).clamp_min(LEAST_SCALE) / (half - 0.5)
        codes = (grouped / scale - 0.5).round().clamp(-half, half - 1) + 0.5
        out.copy_((codes * scale).flatten(1) * deviation + mean)
    return coded


def channel_bytes(width: int, bits: int, run: int = RUN) -> tuple[float, float]:
    """Bytes of codes and of scales (two float32 a channel and run) a row of `by_channel`."""
    return width * bits / 8, 2 * 4 * width / run


def group_bytes(width: int, bits: int, run: int = RUN) -> tuple[float, float]:
    """The same of `by_groups`, whose scales are a float16 for 16 channels and two float32 a channel and run."""
    return width * bits / 8, 2 * width / GROUP_CHANNELS + 2 * 4 * width / run
