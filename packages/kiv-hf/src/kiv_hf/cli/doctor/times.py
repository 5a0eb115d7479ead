"""What ``kiv doctor`` measures: a decode step of one layer at three contexts, beside a plain cache."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import torch
from kiv_fast import FastPool
from kiv_reference.config import KIVConfig

from .finding import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GEOMETRY = {"cuda": (32, 8, 128), "cpu": (8, 2, 64)}
"""Query heads, KV heads and width: those of Llama-3.1-8B on a GPU, small ones elsewhere."""

CONTEXTS = {"cuda": (4096, 32768, 131072), "cpu": (4096, 16384, 65536)}

FILL_TOKENS = 4096

ROUNDS, LONGEST_S = 20, 4.0
"""Steps of each at most, and seconds for both at a context."""


class PlainCache:
    """Keys and values concatenated at every step, and torch's attention: a layer of transformers' `DynamicCache`."""

    def __init__(self) -> None:
        self.key: torch.Tensor | None = None
        self.value: torch.Tensor | None = None

    def append(self, key: torch.Tensor, value: torch.Tensor) -> None:
        """Add tokens."""
        self.key = key if self.key is None else torch.cat((self.key, key), dim=2)
        self.value = value if self.value is None else torch.cat((self.value, value), dim=2)

    def attend(self, query: torch.Tensor, *, scale: float) -> torch.Tensor:
        """Answer one query."""
        assert self.key is not None, "an empty cache"
        assert self.value is not None, "an empty cache"
        return torch.nn.functional.scaled_dot_product_attention(
            query, self.key, self.value, scale=scale, enable_gqa=True
        )


def time_checks(device: torch.device) -> Iterator[tuple[str, Callable[[], Finding]]]:
    """Yield a measurement for each context."""
    kind = device.type if device.type in CONTEXTS else "cpu"
    for tokens in CONTEXTS[kind]:
        name = f"step at {tokens // 1024}K"
        yield name, lambda name=name, tokens=tokens: measure(name, tokens, GEOMETRY[kind], device)


def measure(name: str, tokens: int, geometry: tuple[int, int, int], device: torch.device) -> Finding:
    """Time both in turn. No time is a fault: how fast a machine is, the user knows best.

    What fills the stores is not attended: that decides which channels are coded (SPEC 3.2), not how fast a step is.
    """
    query_heads, heads, width = geometry
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    generator = torch.Generator(device=device).manual_seed(0)

    def draw(heads: int, count: int) -> torch.Tensor:
        return torch.randn(1, heads, count, width, generator=generator, dtype=dtype, device=device)

    pool, plain = FastPool(KIVConfig()), PlainCache()
    subjects = {"KIV": pool.layer_store(), "plain": plain}
    try:
        for begin in range(0, tokens, FILL_TOKENS):
            count = min(FILL_TOKENS, tokens - begin)
            chunk = draw(heads, count), draw(heads, count)
            for subject in subjects.values():
                subject.append(*chunk)
        taken: dict[str, list[float]] = {name: [] for name in subjects}
        end = time.perf_counter() + LONGEST_S
        for number in range(ROUNDS + 2):
            step = draw(heads, 1), draw(heads, 1), draw(query_heads, 1)
            for which, subject in subjects.items():
                begin_s = _now(device)
                subject.append(*step[:2])
                subject.attend(step[2], scale=width**-0.5)
                if number >= 2:  # the first ones make buffers
                    taken[which].append(_now(device) - begin_s)
            if number >= 2 and time.perf_counter() > end:
                break
    finally:
        pool.close()
    kiv_ms, plain_ms = (1e3 * statistics.median(taken[which]) for which in ("KIV", "plain"))
    return Finding(name, f"KIV {kiv_ms:.3g} ms, plain {plain_ms:.3g} ms, one layer")


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
