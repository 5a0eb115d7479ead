"""Fused attention of the simulated device, with the rounding and the shapes of torch's on CUDA.

Scores and sums are float32; weights are rounded to the dtype before they are multiplied by values, and the output is.
"""

from __future__ import annotations

from typing import Any

import torch


def attend(query: Any, key: Any, value: Any, causal: bool, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return output ``[B, H, TQ, DV]`` and log-sum-exp, float32 ``[B, H, TQ]``."""
    logits = torch.matmul(query.float(), key.float().transpose(2, 3)) * scale
    if causal:
        assert query.shape[2] == key.shape[2], "torch's versions differ in which corner the diagonal begins"
        logits = logits.masked_fill(torch.ones(logits.shape[2:], dtype=torch.bool).triu(1), -torch.inf)
    most = logits.amax(dim=3, keepdim=True)
    weights = torch.exp(logits - most)
    total = weights.sum(dim=3, keepdim=True)
    output = torch.matmul(weights.to(value.dtype).float(), value.float()) / total
    return output.to(query.dtype), (most + total.log())[..., 0]


def flash(query: Any, key: Any, value: Any, dropout: float = 0.0, causal: bool = False, *, scale: float) -> Any:
    """Serve as `_scaled_dot_product_flash_attention` does."""
    if query.dtype not in (torch.bfloat16, torch.float16):
        raise RuntimeError("Expected query to have dtype Half or BFloat16")
    assert query.shape[3] == key.shape[3] == value.shape[3] <= 256
    assert query.shape[3] % 8 == 0
    return *attend(query, key, value, causal, scale), None, None, 0, 0, None, None, None


def efficient(
    query: Any, key: Any, value: Any, bias: None, sums: bool, _: float = 0.0, *rest: bool, scale: float
) -> Any:
    """Serve as `_scaled_dot_product_efficient_attention` does: sums are padded to a multiple of 32, with anything."""
    assert sums
    assert query.shape[3] % 8 == value.shape[3] % 8 == 0
    if query.dtype == torch.float64:
        raise RuntimeError("Expected query to have dtype Float, Half or BFloat16")
    output, mass = attend(query, key, value, any(rest), scale)
    return output, torch.nn.functional.pad(mass, (0, -mass.shape[2] % 32), value=torch.nan), None, None


KERNELS = {
    "_scaled_dot_product_flash_attention": flash,
    "_scaled_dot_product_efficient_attention": efficient,
}
