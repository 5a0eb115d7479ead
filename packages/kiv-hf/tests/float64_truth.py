"""Real models in float32: what rounding may cost them, measured against the same model in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

TIMES = 2
"""KIV may be this many times as far from float64 truth as the stock cache is, both as root mean squares.

A root mean square over many logits does not hang on one draw of rounding, as their largest distance does.
"""


def error(logits: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the root mean square distance of `logits` from `truth`."""
    return (logits.double() - truth).square().mean().sqrt().item()
