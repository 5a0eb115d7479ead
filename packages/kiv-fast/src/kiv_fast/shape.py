"""What the first append fixes, and where the numbers of a tensor begin."""

from __future__ import annotations

import torch
from kiv_reference.checks import StoreShape


class Shape(StoreShape):
    """What the first append fixes (SPEC 9.1)."""

    __slots__ = ()

    @property
    def compute(self) -> torch.dtype:
        """The dtype of scores, summaries and sums (SPEC 1.2)."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def token_bytes(self) -> int:
        """Bytes of one cold token's key and value, in one sequence."""
        return self.heads * (self.key_width + self.value_width) * self.dtype.itemsize


ALIGNMENT = 64
"""Bytes at a multiple of which torch's own memory begins."""


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """Put numbers where torch would have: products may round otherwise when memory begins elsewhere."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT else tensor
