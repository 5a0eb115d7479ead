"""Decode time and memory of every system from one context: they take turns, so that noise falls on all alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kiv_hf import KIVCache

from benchmarks.timing import interleave, median_ms

from .contexts import Context
from .continuation import Continuation
from .documents import haystack_tokens
from .journal import Record
from .memory import peak_bytes, stock_bytes
from .systems import System

ROUNDS, WARMUP = 24, 4


def cache_bytes(cache: Any) -> int:
    """Bytes of keys and values that a cache holds, in whatever form, on all tiers; a KIV cache counts its index too."""
    if not isinstance(cache, KIVCache):
        return stock_bytes(cache.layers)
    ours = cache.kiv_layers()
    return sum(cache.memory()) + stock_bytes(layer for i, layer in enumerate(cache.layers) if i not in ours)


def record(model: str, text: str, length: int, tested: Sequence[System], quick: bool) -> Record:
    """Median milliseconds a decode step, bytes of the cache, and transient bytes of a step, for each system."""
    context = Context(model, haystack_tokens(model, text, length))
    token = context.ids[:, -1:]
    opened = {system.name: context.open(system) for system in tested}
    held = {name: cache_bytes(continuation.cache) for name, continuation in opened.items()}
    rounds, warmup = (3, 1) if quick else (ROUNDS, WARMUP)

    def stepper(continuation: Continuation) -> Any:
        return lambda _: continuation.read(token)

    taken = interleave({name: stepper(continuation) for name, continuation in opened.items()}, rounds, warmup)
    peaks = {name: peak_bytes(continuation, token) for name, continuation in opened.items()}
    for continuation in opened.values():
        continuation.close()
    context.close()
    return {
        "step_ms": {name: median_ms(times) for name, times in taken.items()},
        "all_ms": {name: [1e3 * t for t in times] for name, times in taken.items()},
        "cache_bytes": held,
        "transient_bytes": peaks,
    }
