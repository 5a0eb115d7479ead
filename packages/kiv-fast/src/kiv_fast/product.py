"""Products of small integers: a chapter's levels times the parts of queries, exact, by the fastest way torch has here.

Magnitudes are at most 127 and 63 and sums have at most 2,048 terms, so that float32 holds every partial sum exactly:
all ways return the same numbers.
"""

from __future__ import annotations

import warnings
from typing import Any, Protocol

import torch

ZERO_POINT = 64
"""Of query parts as 7-bit unsigned integers, which no engine saturates on."""

BLOCK_LEVELS = 512
"""The packed levels of a page and head are padded to whole blocks: held as well, where memory was in use before."""


class Product(Protocol):
    """A way to keep levels and to multiply by them."""

    page_bytes: int  # for each page and head, beside the levels

    def pack(self, levels: torch.Tensor) -> Any:
        """Keep ``levels [H, pages, W]``, integers of magnitude at most 127."""
        ...

    def __call__(self, parts: torch.Tensor, packed: Any) -> torch.Tensor:
        """``parts [H, rows, W]``, integers of magnitude at most 63, times what `pack` kept: ``[H, rows, pages]``."""
        ...


class PackedProduct:
    """Torch's packed 8-bit matrix product, which its x86 engines have: as fast as memory can be read."""

    page_bytes = 16  # a scale, a zero point and a sum

    def pack(self, levels: torch.Tensor) -> list[Any]:
        """One packed matrix a head."""
        pages = levels.shape[1]
        ones = torch.ones(pages, dtype=torch.float64, device="cpu")
        zeros = torch.zeros(pages, dtype=torch.int64, device="cpu")
        with warnings.catch_warnings():
            # Torch means to drop quantised tensors, the only way to its packed product; `product_for` will notice.
            warnings.simplefilter("ignore", UserWarning)
            heads = [torch.quantize_per_channel(head.contiguous(), ones, zeros, 0, torch.qint8) for head in levels]
        return [torch.ops.quantized.linear_prepack(head, None) for head in heads]

    def __call__(self, parts: torch.Tensor, packed: list[Any]) -> torch.Tensor:
        """A product a head."""
        product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        heads = [product(part, 1.0, ZERO_POINT, head) for part, head in zip(parts, packed, strict=True)]
        return heads[0][None] if len(heads) == 1 else torch.stack(heads)


class WidenedProduct:
    """Levels of one byte, widened as they are multiplied: for devices that have the arithmetic to spare."""

    page_bytes = 0

    def pack(self, levels: torch.Tensor) -> torch.Tensor:
        """int8 ``[H, pages, W]``."""
        return levels.to(torch.int8)

    def __call__(self, parts: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
        """One product for all heads."""
        return parts @ packed.to(parts.dtype).transpose(1, 2)


def product_for(device: torch.device, width: int, page_bytes: int) -> Product | None:
    """The way to take on `device`; None where a float product over all summaries is no slower.

    Where the padding of `width` levels is more than a tenth of the keys, values and summary of a page and head, of
    `page_bytes`, they are not packed: nobody books the padding.
    """
    if device.type != "cpu":
        return WidenedProduct()
    engine: str = torch.backends.quantized.engine
    product = getattr(torch.ops.quantized, "linear_with_input_q_dq_qweight_dq_output_fp32", None)
    if engine in ("x86", "fbgemm", "onednn") and product is not None and hasattr(torch, "quantize_per_channel"):
        return WidenedProduct() if 10 * (-width % BLOCK_LEVELS) > page_bytes else PackedProduct()
    return None
