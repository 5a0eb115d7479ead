"""By what a store computes on a device: asked for by name, which never falls back, and chosen by "auto"."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from kiv_fast import FastPool

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kiv_fast.ops import OpsName

    from .gpu_sizes import Geometry, Sizes


def operations(device: torch.device, geometries: Mapping[str, Geometry], sizes: Sizes) -> dict[str, Any]:
    """Take two steps of a layer of each geometry, the first of which compiles.

    Returns
    -------
    dict: ``well``, whether "auto" took Triton on a CUDA device, and ``stores``: geometry -> ``operations``,
    ``exact_attention`` and the seconds of both steps
    """
    name: OpsName = "triton" if device.type == "cuda" else "auto"
    found = {title: _store(device, geometry, sizes, name) for title, geometry in geometries.items()}
    chosen = [one["operations"] for one in found.values()]
    well = device.type != "cuda" or all("triton" in told for told in chosen)
    return {"well": well, "asked for": name, "stores": found}


def _store(device: torch.device, geometry: Geometry, sizes: Sizes, name: OpsName) -> dict[str, Any]:
    generator = torch.Generator(device).manual_seed(0)

    def draw(heads: int, count: int) -> torch.Tensor:
        return torch.randn(1, heads, count, geometry.width, generator=generator, dtype=torch.bfloat16, device=device)

    tokens = sizes.config.hot_tokens + 3 * sizes.config.candidate_tokens + 2 * sizes.config.page_tokens
    pools = FastPool(sizes.config, ops=name), FastPool(sizes.config)
    named, chosen = (pool.layer_store() for pool in pools)
    taken: list[float] = []
    try:
        chunk, step = [draw(geometry.heads, tokens) for _ in "kv"], [draw(geometry.heads, 1) for _ in "kv"]
        named.append(*chunk)
        chosen.append(*step)  # "auto" is asked what it took, and need not compute
        for _ in range(2):
            begin = time.perf_counter()
            named.append(*step)
            answer = named.attend(draw(geometry.query_heads, 1), scale=geometry.width**-0.5)
            if not answer.isfinite().all().item():  # waits for the device
                raise ArithmeticError(f"a step of {geometry.title} is not finite")
            taken.append(time.perf_counter() - begin)
        told = {"operations": pools[1].operations, "exact_attention": pools[0].exact_attention}
        return {**told, "steps_s": taken}
    finally:
        for pool in pools:
            pool.close()
