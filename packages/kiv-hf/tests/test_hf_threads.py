"""Forks of one cache, each in a thread of its own, write the texts that they write one after the other."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hf_models import EXACT, FULL_BUDGET, VOCABULARY, TinyModel

if TYPE_CHECKING:
    from pathlib import Path

    from kiv_hf import KIVCache
    from kiv_reference import KIVConfig

THREADS, PROMPT = 6, 240
RETRIEVAL = replace(
    FULL_BUDGET, retrieve_tokens=9, candidate_tokens=16, max_missed_mass=None, prefill="exact", tail="mean"
)


def prompt(llama: TinyModel) -> torch.Tensor:
    return llama.ids.repeat(1, 3)[:, :PROMPT]


def write(llama: TinyModel, cache: Any, seed: int) -> tuple[Any, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.cat([prompt(llama), torch.randint(2, VOCABULARY, (1, 12), generator=generator)], dim=1)
    settings = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    out = llama.kiv.generate(ids, past_key_values=cache, output_scores=True, return_dict_in_generate=True, **settings)
    cache.close()
    return out.sequences, torch.stack(out.scores)


def forks(llama: TinyModel, config: KIVConfig, impl: str) -> tuple[KIVCache, list[KIVCache]]:
    cache = llama.cache(config, impl=impl)
    llama.kiv(prompt(llama), past_key_values=cache)
    with ThreadPoolExecutor(THREADS) as threads:
        return cache, list(threads.map(lambda _: cache.fork(), range(THREADS)))


@pytest.mark.parametrize(
    ("impl", "ram"), [("fast", None), ("fast", 100_000), ("reference", None)], ids=["RAM", "disk", "reference"]
)
@pytest.mark.parametrize("config", [EXACT, RETRIEVAL], ids=["exact", "retrieval"])
def test_forks_in_threads(llama: TinyModel, config: KIVConfig, ram: int | None, impl: str, tmp_path: Path) -> None:
    if ram is not None:
        config = replace(config, ram_bytes=ram, spill_dir=tmp_path)
    _, alone = forks(llama, config, impl)
    expected = [write(llama, fork, seed) for seed, fork in enumerate(alone)]
    cache, together = forks(llama, config, impl)
    # Before any thread begins: whether pages are on disk must not depend on how the threads take turns.
    assert (cache.memory().disk > 0) == (ram is not None)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(THREADS) as threads:
            found = list(threads.map(lambda at: write(llama, together[at], at), range(THREADS)))
    finally:
        sys.setswitchinterval(before)
    for (text, scores), (right_text, right_scores) in zip(found, expected, strict=True):
        assert torch.equal(text, right_text)
        assert torch.equal(scores, right_scores)
    if ram is not None:
        pool: Any = cache.pool
        assert pool.counters.disk_bytes_read > 0
    cache.close()
    assert cache.memory() == (0, 0, 0)
