"""What a cache tells of itself: counters, bytes by tier, and by what its steps were computed."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from kiv_fast.ops.triton import TritonDecoder
from kiv_hf import KIVCache

if TYPE_CHECKING:
    import torch


def counters_of(cache: Any) -> dict[str, int]:
    """Return what the pool counts, whatever that is, and of the rows that a device keeps; nothing of another cache."""
    pool = cast("Any", cache.pool) if isinstance(cache, KIVCache) else None
    counters = getattr(pool, "counters", None)
    return {} if counters is None else asdict(counters) | getattr(pool, "device_row_hits", dict)()


def held_bytes(cache: Any, device: torch.device) -> dict[str, Any]:
    """Return the bytes of keys, values and all that a cache keeps of them, by tier, and KIV's on the device by part."""
    if isinstance(cache, KIVCache):
        parts = getattr(cast("Any", cache.pool), "device_breakdown", dict)
        return {"tiers": cache.memory()._asdict(), "device_parts": parts()}
    held = [part for layer in cast("list[Any]", cache.layers) for part in (layer.keys, layer.values)]
    near = sum(part.nbytes for part in held if part.device.type == device.type)
    return {"tiers": {"device": near, "ram": sum(part.nbytes for part in held) - near, "disk": 0}}


def without_graphs(cache: KIVCache) -> None:
    """Let steps launch kernel by kernel from now on."""
    for store in cast("Any", cache.pool).stores:
        if store.state is not None and store.state.decoder is not None:
            store.state.decoder = TritonDecoder()


def told(cache: Any) -> dict[str, str]:
    """Return by what KIV computed its steps and its exact calls."""
    pool = cast("Any", cache.pool) if isinstance(cache, KIVCache) else None
    return {name: getattr(pool, name) for name in ("operations", "exact_attention") if hasattr(pool, name)}
