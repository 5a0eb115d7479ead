from dataclasses import replace

import pytest
import torch
from fast_helpers import SCALE, draw, feed
from kiv_fast import FastPool, state


@pytest.mark.parametrize("chunks", [[300], [100, 100, 100], [37, 263], [299, 1]])
@pytest.mark.parametrize("value_width", [16, 8, 24])
def test_exact_calls_are_full_attention(config, chunks, value_width, monkeypatch):
    monkeypatch.setattr(state, "TILE_TOKENS", 64)
    config = replace(config, retrieve_tokens=None)
    data = draw(0, 300, batch=2, value_width=value_width)
    key, value, query = data
    full = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=SCALE, enable_gqa=True
    )
    torch.testing.assert_close(feed(FastPool(config).layer_store(), data, chunks), full)


def test_a_second_attend_gives_the_same_bits(config):
    store = FastPool(replace(config, prefill="retrieve", query_block_tokens=8)).layer_store()
    key, value, query = draw(1, 300)
    store.append(key, value)
    first = store.attend(query, scale=SCALE)
    assert torch.equal(store.attend(query, scale=SCALE), first)


def test_device_memory_does_not_grow_with_the_context_beyond_the_summaries(config):
    pool = FastPool(config)
    store = pool.layer_store()
    grown = []
    for chunk in range(8):
        feed(store, draw(chunk, 120), [120])
        cold = pool.config.cold_pages(store.length)
        summaries = store.state.cold.row_bytes(store.state.rows[0])
        grown.append(pool.memory().device - summaries.device - store.length)
        assert pool.memory().ram == cold * store.state.cold.arena.page_bytes + summaries.ram
    assert len(set(grown)) == 1


def test_infinite_values_show_only_where_they_are_attended(config):
    key, value, query = draw(2, 60)
    value[:, :, 40] = torch.inf
    store = FastPool(config).layer_store()
    store.append(key, value)
    output = store.attend(query, scale=SCALE)
    assert bool(torch.isfinite(output[:, :, :40]).all())
    assert not bool(torch.isfinite(output[:, :, 40:]).any())
