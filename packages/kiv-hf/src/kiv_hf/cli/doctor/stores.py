"""What ``kiv doctor`` asks of the stores: on the device, in every dtype, do they do what the specification says?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from kiv_reference.config import KIVConfig

from ...compare.pool import ComparePool, KIVDivergenceError
from .finding import Finding, first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

CONFIG = KIVConfig(
    hot_tokens=64, sink_tokens=4, page_tokens=16, index_channels=24, candidate_tokens=128, retrieve_tokens=48,
    query_block_tokens=16, exact_suffix_tokens=8, prefill="retrieve",
)  # fmt: skip

SEQUENCES, QUERY_HEADS, HEADS, WIDTH = 2, 8, 2, 64

CALLS = (300, 150, 1, 1, 33, *[1] * 14)
"""Tokens of each call: prefills, one by retrieval, and steps; pages leave the hot window on the way."""


def store_checks(device: torch.device) -> Iterator[tuple[str, Callable[[], Finding]]]:
    """Yield a check for each dtype."""
    for dtype in DTYPES:
        name = f"store in {str(dtype).removeprefix('torch.')}"
        yield name, lambda name=name, dtype=dtype: compare(name, dtype, device)


def compare(name: str, dtype: torch.dtype, device: torch.device) -> Finding:
    """Compare every answer of a store with the reference in float64 and in `dtype`."""
    generator = torch.Generator(device="cpu").manual_seed(0)

    def draw(heads: int, tokens: int) -> torch.Tensor:
        shape = SEQUENCES, heads, tokens, WIDTH
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(dtype).to(device)

    pool = ComparePool(CONFIG)
    store = pool.layer_store()
    answers = 0
    try:
        for tokens in CALLS:
            store.append(draw(HEADS, tokens), draw(HEADS, tokens))
            store.attend(2 * draw(QUERY_HEADS, tokens), scale=WIDTH**-0.5)
            answers += SEQUENCES * tokens
        store.crop(store.length - 40)
        store.append(draw(HEADS, 1), draw(HEADS, 1))
        store.attend(2 * draw(QUERY_HEADS, 1), scale=WIDTH**-0.5)
    except KIVDivergenceError as error:
        remedy = "Do not use this dtype on this device; report it with this table."
        return Finding(name, f"wrong after {answers} answers", False, f"{first_line(error)}.", remedy)
    finally:
        pool.close()
    return Finding(name, f"{answers + SEQUENCES} answers as the reference has them")
