"""Cards that a plan is made for: what their makers state, and what is taken for granted of them all."""

from __future__ import annotations

from dataclasses import dataclass

GB = 10**9

VRAM_SHARE = 0.85
"""Of a card's stated memory bandwidth that a kernel reaches which reads much; an assumption."""

MATMUL_SHARE = 0.5
"""Of a card's stated arithmetic that products and attention of a long prompt reach; an assumption."""

HOST_ROW_BYTES = 256
"""Rows at least this long cross PCIe at its full rate when a kernel reads them one by one; an assumption."""

CONTEXT_BYTES = 600_000_000
"""Device memory that CUDA, its libraries and torch take before the first tensor; an assumption."""


@dataclass(frozen=True)
class Card:
    """A GPU.

    Attributes
    ----------
    name : str
        As `--card` takes it.
    cuda_names : tuple of str
        As CUDA tells it, without the maker.
    memory : int
        Bytes.
    vram : float
        Bytes a second of its memory, as its maker states.
    host : float
        Bytes a second that come over PCIe from pinned memory.
    products : float
        Operations a second of dense half-precision products with sums in float32, as torch computes them.
    """

    name: str
    cuda_names: tuple[str, ...]
    memory: int
    vram: float
    host: float
    products: float


CARDS = (
    Card("RTX 3060", ("GeForce RTX 3060",), 12 << 30, 360 * GB, 24 * GB, 25.5e12),
    Card("RTX 4070", ("GeForce RTX 4070",), 12 << 30, 504 * GB, 24 * GB, 58.3e12),
    Card("RTX 4090", ("GeForce RTX 4090",), 24 << 30, 1008 * GB, 24 * GB, 165.2e12),
    Card("H100", ("H100 80GB HBM3", "H100 SXM5 80GB"), 80 << 30, 3350 * GB, 46 * GB, 989.4e12),
)
"""Bandwidths and products are NVIDIA's figures: of the two that the GeForce cards have, those with sums in float32,
half of the others. PCIe: what copies from pinned memory reach, 22 to 26 GB/s of version 4 and 36 to 56 of version 5."""


def find_card(name: str) -> Card | None:
    """Return the card that `name` means, in whatever case and with or without its maker's words; None if none is."""
    wanted = name.lower().replace("nvidia", "").replace("geforce", "").replace(" ", "").replace("-", "")
    return next(
        (
            card
            for card in CARDS
            if wanted in (card.name.lower().replace(" ", ""), card.name.lower().removeprefix("rtx "))
        ),
        None,
    )
