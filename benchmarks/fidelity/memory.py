"""Memory of a cache: bytes of what it holds, and what a decode step takes on top for a moment."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import process_bytes
from benchmarks.timing import quiet

from .continuation import Continuation

PEAK_STEPS = 3


def tensors(held: Any, depth: int = 4) -> Iterable[torch.Tensor]:
    """Every tensor that an object holds, at most `depth` containers deep; of a quantised tensor, its parts."""
    if isinstance(held, torch.Tensor):
        if hasattr(type(held), "__tensor_flatten__"):
            for name in held.__tensor_flatten__()[0]:  # pyright: ignore[reportAttributeAccessIssue]
                yield from tensors(getattr(held, name), depth - 1)
        else:
            yield held
    elif depth > 0 and isinstance(held, dict):
        for part in held.values():
            yield from tensors(part, depth - 1)
    elif depth > 0 and isinstance(held, (list, tuple)):
        for part in held:
            yield from tensors(part, depth - 1)


def stock_bytes(layers: Iterable[Any]) -> int:
    """Bytes of the tensors that layers hold; a tensor that is held twice counts once."""
    sizes: dict[int, int] = {}
    for layer in layers:
        for tensor in tensors(vars(layer)):
            sizes[tensor.data_ptr()] = max(sizes.get(tensor.data_ptr(), 0), tensor.nbytes)
    return sum(sizes.values())


def reset_peak() -> bool:
    """Make the OS forget this process's peak; False where it cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_bytes(continuation: Continuation, token: torch.Tensor) -> int | None:
    """How far the process rises above what it held while a few tokens are decoded; None where the OS cannot tell."""
    if not reset_peak():
        return None
    before = process_bytes().rss
    with quiet():
        for _ in range(PEAK_STEPS):
            continuation.read(token)
    return max(0, process_bytes().peak - before)
