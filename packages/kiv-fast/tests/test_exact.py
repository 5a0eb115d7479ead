from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from fast_helpers import SCALE, assert_close, draw, feed, index_bytes, state_of
from kiv_fast import FastPool, Tuning
from kiv_fast.attention import exact
from kiv_fast.ops.arguments import Queries, Tile
from kiv_reference import KIVConfig, ReferencePool


@pytest.mark.parametrize("chunks", [[300], [100, 100, 100], [37, 263], [299, 1]])
@pytest.mark.parametrize("value_width", [16, 8, 24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_exact_calls_are_full_attention(
    config: KIVConfig, chunks: list[int], value_width: int, dtype: torch.dtype
) -> None:
    config = replace(config, retrieve_tokens=None)
    data = draw(0, 300, batch=2, value_width=value_width, dtype=dtype)
    key, value, query = data
    full = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=SCALE, enable_gqa=True
    )
    assert_close(feed(FastPool(config, tuning=Tuning(tile_tokens=64)).layer_store(), data, chunks), full)


def test_a_second_attend_gives_the_same_bits(config: KIVConfig) -> None:
    store = FastPool(replace(config, prefill="retrieve", query_block_tokens=8)).layer_store()
    key, value, query = draw(1, 300)
    store.append(key, value)
    first = store.attend(query, scale=SCALE)
    assert torch.equal(store.attend(query, scale=SCALE), first)


def test_device_memory_grows_with_the_context_by_the_index_alone(config: KIVConfig) -> None:
    pool = FastPool(config)
    store = pool.layer_store()
    grown = []
    for chunk in range(8):
        feed(store, draw(chunk, 120), [120])
        cold = pool.config.cold_pages(store.length)
        grown.append(pool.memory().device - state_of(store).cold.index_bytes - pool.scratch.nbytes)
        assert pool.memory().ram == cold * state_of(store).cold.arena.page_bytes + index_bytes(store)
    assert len(set(grown)) == 1


def test_infinite_values_show_only_where_they_are_attended(config: KIVConfig) -> None:
    key, value, query = draw(2, 60)
    value[:, :, 40] = torch.inf
    store = FastPool(config).layer_store()
    store.append(key, value)
    output = store.attend(query, scale=SCALE)
    assert bool(torch.isfinite(output[:, :, :40]).all())
    assert not bool(torch.isfinite(output[:, :, 40:]).any())


@pytest.mark.parametrize("chunks", [[40], [20, 20], [1] * 40])
@pytest.mark.parametrize("logit", [1e3, 1e6, 1e8, 1e17, 1e36])
@pytest.mark.parametrize("sinks", [False, True])
def test_equal_huge_logits_still_average_over_tiles(
    config: KIVConfig, chunks: list[int], logit: float, sinks: bool
) -> None:
    # Logits without rounding, so that only the merge of tiles can lose the number of tokens in each.
    config = replace(config, retrieve_tokens=None)
    size = 2.0 ** round(math.log2(logit))
    key, value, query = torch.full((1, 1, 40, 1), size), draw(4, 40, heads=1)[1], torch.ones(1, 2, 40, 1)
    logits = torch.full((2,), size) if sinks else None
    outputs = {}
    for pool in (FastPool(config, tuning=Tuning(tile_tokens=4, query_chunk=7)), ReferencePool(config)):
        store, start = pool.layer_store(), 0
        for n in chunks:
            at = slice(start, start + n)
            store.append(key[:, :, at], value[:, :, at])
            outputs.setdefault(type(pool), []).append(store.attend(query[:, :, at], scale=1.0, sink_logits=logits))
            start += n
    fast, reference = (torch.cat(parts, dim=2) for parts in outputs.values())
    # Fused attention may lose up to `LOST` of the number of tokens in a tile.
    torch.testing.assert_close(fast, reference, rtol=0, atol=2 * exact.LOST)


def test_ordinary_logits_stay_with_fused_attention(config: KIVConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(*arguments: Any) -> None:
        raise AssertionError("logits were written out")

    monkeypatch.setattr(exact, "_plain", plain)
    feed(FastPool(replace(config, retrieve_tokens=None)).layer_store(), draw(5, 300), [100, 200])


def test_tokens_after_the_last_query_are_not_seen() -> None:
    # Where only some of a block are asked for, hot tokens may all come later: torch ends the process if none asks.
    key, value, query = draw(6, 12, batch=1, heads=1)
    tiles = [Tile(key, value, 0, first, 4, first, None) for first in (0, 4, 8)]
    queries = Queries(query[:, :, 2:5], 2, None, SCALE, None, None)

    def attend(some: list[Tile]) -> torch.Tensor:
        return exact.attend_exactly(queries, lambda: some, value.shape[3], True, 64, torch.float32)

    assert torch.equal(attend(tiles), attend(tiles[:2]))
