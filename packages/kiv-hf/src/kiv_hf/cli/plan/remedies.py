"""What would make a plan fit that does not."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..sizes.weights import BITS
from ..units import format_bytes
from .layout import lay_out

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..sizes.model import ModelSizes
    from .wish import Wish

LEAST_HOT, LEAST_CHANNELS = 512, 32
"""Hot tokens and coded channels that are still sensible, if an index of fewer channels finds less."""

STEP_TOKENS = 1024


def remedies(sizes: ModelSizes, wish: Wish) -> list[str]:
    """Return each change that makes the plan fit, alone or else all together, and what context would fit."""
    alone = [said for said, other in _changes(wish) if not lay_out(sizes, other).reasons]
    if not alone:
        said, last = list[str](), wish
        for what, _ in _changes(wish):
            said.append(what)
            last = next(other for again, other in _changes(last) if again == what)
            if not lay_out(sizes, last).reasons:
                alone = [" and ".join(said)]
                break
    alone += _more_room(sizes, wish)
    longest = longest_context(sizes, wish)
    return [*alone, f"a context of {longest:,} tokens"] if longest else alone


def _changes(wish: Wish) -> Iterator[tuple[str, Wish]]:
    bits = wish.bits or 8 * wish.dtype.itemsize
    for name in ("8bit", "4bit"):
        if BITS[name] < bits:
            yield f"weights in {name.removesuffix('bit')} bits (--weights {name})", replace(wish, bits=BITS[name])
    config = wish.config
    if config.hot_tokens > LEAST_HOT:
        yield f"--hot-tokens {LEAST_HOT}", replace(wish, config=replace(config, hot_tokens=LEAST_HOT))
    if config.index_channels > LEAST_CHANNELS:
        yield (
            f"--index-channels {LEAST_CHANNELS} (the index finds less)",
            replace(wish, config=replace(config, index_channels=LEAST_CHANNELS)),
        )


def _more_room(sizes: ModelSizes, wish: Wish) -> list[str]:
    """Return how much of each kind of memory would do, where that alone is missing."""
    said: list[str] = []
    layout = lay_out(sizes, replace(wish, device_memory=1 << 62))
    if not layout.reasons:
        smallest = lay_out(sizes, replace(wish, device_memory=0))
        said.append(f"{_upwards(smallest.device)} of device memory")
    layout = lay_out(sizes, replace(wish, ram=1 << 62))
    if not layout.reasons:
        said.append(f"{_upwards(layout.ram)} of RAM")
    return said


def _upwards(count: int) -> str:
    """Write bytes so that no less is said: three digits, rounded up."""
    unit = 10 ** max(0, len(str(count)) - 3)
    return format_bytes(-(-count // unit) * unit)


def longest_context(sizes: ModelSizes, wish: Wish) -> int:
    """Return the longest context that fits, a multiple of 1,024 tokens; 0 if none does."""
    low, high = 0, wish.tokens // STEP_TOKENS
    while low < high:
        middle = (low + high + 1) // 2
        fits = not lay_out(sizes, replace(wish, tokens=middle * STEP_TOKENS)).reasons
        low, high = (middle, high) if fits else (low, middle - 1)
    return low * STEP_TOKENS
