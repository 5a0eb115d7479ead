"""Tensors as bytes, and the names that safetensors has for their types."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from kiv_reference.errors import KIVBudgetError, KIVUsageError, refuse

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""Types that can be saved."""

NAMES = {dtype: name for name, dtype in DTYPES.items()}


def bytes_of(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """Return a tensor's numbers as bytes, from wherever they are; in RAM and side by side they are not copied."""
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy()


def room_for(dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
    """Return a tensor in RAM that is still to be filled.

    Raises
    ------
    KIVBudgetError
        There is no memory for it.
    """
    try:
        return torch.empty(tuple(shape), dtype=dtype, device="cpu")
    except (RuntimeError, MemoryError) as error:
        rule = "what a context keeps beside its pages must fit into memory"
        raise refuse(KIVBudgetError, rule, f"{dtype} {list(shape)}", "Free memory, or use a larger machine.") from error


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a type in files.

    Raises
    ------
    KIVUsageError
        It has none.
    """
    if dtype not in NAMES:
        raise refuse(KIVUsageError, "a tensor that is saved must be of a type that safetensors has", dtype, "Cast it.")
    return NAMES[dtype]
