"""Costs: kiv-fast's bytes against a real pool of the same geometry, and the others by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kiv_hf.impls import resolve_impl
from kiv_reference.config import KIVConfig

from benchmarks.fidelity.costs import ORIGINAL_AT_1M, cost
from benchmarks.fidelity.held import held, held_by
from benchmarks.fidelity.rows import KIV, ORIGINAL
from benchmarks.fidelity.scene import Setting

SETTING = Setting(2048, 4, 256, 4096)
LAYERS, HEADS, WIDTH = 3, 1, 512


# The second has enough pages for a chapter of the index, which the default would need 33 thousand tokens for.
@pytest.mark.parametrize(("config", "tokens"), [(KIVConfig(), 8192), (KIVConfig(page_tokens=8, hot_tokens=512), 36000)])
def test_a_real_pool_holds_what_is_counted(config: KIVConfig, tokens: int):
    generator = torch.Generator().manual_seed(0)
    pool = resolve_impl("fast")(config)
    stores = [pool.layer_store() for _ in range(LAYERS)]
    whole = torch.randn(1, HEADS, tokens, WIDTH, generator=generator).to(torch.bfloat16)
    query = torch.randn(1, 8, 1, WIDTH, generator=generator).to(torch.bfloat16)
    for store in stores:
        for part in (*whole[:, :, :-1].split(2048, dim=2), whole[:, :, -1:]):
            store.append(part, part)
        store.attend(query, scale=WIDTH**-0.5)
    found = held_by(pool)
    assert found == held(config, LAYERS, HEADS, WIDTH, WIDTH, tokens)
    assert sum(found) == pool.memory().device
    assert (found.index > 0) == (config.page_tokens == 8)
    pool.close()


def test_the_default_is_priced_as_it_is_held():
    found = cost(KIV, SETTING, ORIGINAL_AT_1M, key_tokens=4096, value_tokens=256)
    assert found.device_bytes == sum(held(KIVConfig(), 3, 1, 512, 512, 2**20))
    # candidate keys, selected values, float32 means of the candidate pages, and the summaries that are looked at
    assert found.moved_bytes == 3 * (4096 * 512 * 2 + 256 * 512 * 2 + 64 * 2 * 512 * 4 + 3 * 64 * 2 * 512 * 4)
    packed = cost(replace(KIV, key_bits=4), SETTING, ORIGINAL_AT_1M, key_tokens=4096, value_tokens=256)
    assert found.moved_bytes - packed.moved_bytes == 3 * (4096 * 512 * 2 * 3 / 4 - 256 * 512 * 2)


def test_the_original_is_priced_by_its_own_design():
    found = cost(ORIGINAL, SETTING, ORIGINAL_AT_1M, key_tokens=6000, value_tokens=6000)
    cold = 2**20 - 2048 - 4
    assert found.index_bytes == pytest.approx(3 * cold / 128 * 512 * 2)
    assert found.span_bytes == 0
    assert found.window_bytes == 3 * (2048 + 127 + 4) * 512 * 2 * 2
    assert found.moved_bytes == 3 * 2 * 6000 * 512 * 2
