"""A layer's decode step at a few lengths, for pytest-benchmark; `regression` runs this file on two revisions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import kiv_fast
import pytest
import torch
from kiv_reference import KIVConfig

from .profiled import profiled
from .report import short

GEOMETRIES = {"9 and 3 heads of 64": (9, 3, 64), "8 and 1 heads of 512": (8, 1, 512)}
"""Name -> query heads, KV heads and channels of a head."""

TOKENS = (4096, 32768, 131072)
CHUNK_TOKENS = 4096
ROUNDS, WARMUP = 30, 5
PACKAGES = "KIV_PACKAGES"
"""Environment variable: the folder whose packages are to be measured."""


@pytest.mark.parametrize("tokens", TOKENS, ids=short)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@torch.inference_mode()
def test_decode_step(benchmark: Any, geometry: str, tokens: int) -> None:
    """Time steps of one token after random ones; count what a step does, reads and leaves in memory."""
    assert Path(kiv_fast.__file__).is_relative_to(os.environ[PACKAGES]), "other packages than those to be measured"
    torch.set_num_threads(1)
    query_heads, heads, width = GEOMETRIES[geometry]
    generator = torch.Generator().manual_seed(0)

    def random(count: int, tokens: int) -> torch.Tensor:
        return torch.randn(1, count, tokens, width, generator=generator).bfloat16()

    pool = kiv_fast.FastPool(KIVConfig())
    store = pool.layer_store()
    for start in range(0, tokens, CHUNK_TOKENS):
        store.append(*(random(heads, min(CHUNK_TOKENS, tokens - start)) for _ in "kv"))
    key, value, query = random(heads, 1), random(heads, 1), random(query_heads, 1)

    def step() -> None:
        store.append(key, value)
        store.attend(query, scale=width**-0.5)

    benchmark.pedantic(step, rounds=ROUNDS, warmup_rounds=WARMUP)
    report, memory = store.report, pool.memory()
    benchmark.extra_info |= {
        "operations": profiled(step, 2, torch.device("cpu"))["operations"],
        "bytes read": report.key_bytes + report.value_bytes,
        "device bytes": memory.device,
        "RAM bytes": memory.ram,
    }
    pool.close()
