"""Bytes and dtypes as people write them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kiv_reference.sizes import parse_bytes

if TYPE_CHECKING:
    import torch

__all__ = ["DTYPES", "dtype_name", "format_bytes", "parse_bytes"]

DTYPES = ("float32", "bfloat16", "float16")
"""Names of the dtypes that a model may be loaded in, as torch has them."""


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype without its package, as in bfloat16."""
    return str(dtype).removeprefix("torch.")


def format_bytes(count: int) -> str:
    """Return `count` bytes with three digits and a decimal unit, as in 1.23 GB."""
    value, unit = float(count), "B"
    for bigger in ("KB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, bigger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
