"""Where nothing is left out, logits equal DynamicCache's to rounding (SPEC 4.8, 7.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hf_models import EXACT, FEEDS, FULL_BUDGET, STARVED, TEXT_TOKENS, TinyModel, feed

if TYPE_CHECKING:
    from kiv_reference import KIVConfig


@pytest.mark.parametrize("lengths", FEEDS.values(), ids=FEEDS.keys())
@pytest.mark.parametrize("config", [EXACT, FULL_BUDGET], ids=["exact", "full budget"])
def test_logits_equal_those_of_the_stock_cache(tiny: TinyModel, config: KIVConfig, lengths: list[int]) -> None:
    expected = feed(tiny.stock, tiny.ids, tiny.stock_cache(), lengths)
    cache = tiny.cache(config)
    logits = feed(tiny.kiv, tiny.ids, cache, lengths)
    assert (logits - expected).abs().max().item() <= tiny.rounding()
    assert cache.tokens().cold_ram > TEXT_TOKENS // 2
    assert cache.get_seq_length() == TEXT_TOKENS


def test_full_budget_retrieves(tiny: TinyModel) -> None:
    cache = tiny.cache(FULL_BUDGET)
    feed(tiny.kiv, tiny.ids, cache, FEEDS["chunks"])
    block = next(iter(cache.reports().values())).blocks[-1]
    assert block.mode == "retrieve"
    assert not block.streamed.any()
    assert (block.selected_positions >= 0).sum(-1).min() > TEXT_TOKENS // 2


def test_the_comparison_can_fail(tiny: TinyModel) -> None:
    expected = feed(tiny.stock, tiny.ids, tiny.stock_cache(), FEEDS["chunks"])
    logits = feed(tiny.kiv, tiny.ids, tiny.cache(STARVED), FEEDS["chunks"])
    assert (logits - expected).abs().max().item() > 10 * tiny.rounding()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(llama: TinyModel, dtype: torch.dtype) -> None:
    """KIV errs as the stock cache does, measured against float64."""
    truth = feed(llama.stock, llama.ids, llama.stock_cache(), FEEDS["chunks"])
    llama.kiv.to(dtype)
    llama.stock.to(dtype)
    stock = feed(llama.stock, llama.ids, llama.stock_cache(), FEEDS["chunks"]).double() - truth
    logits = feed(llama.kiv, llama.ids, llama.cache(), FEEDS["chunks"]).double() - truth
    starved = feed(llama.kiv, llama.ids, llama.cache(STARVED), FEEDS["chunks"]).double() - truth
    assert logits.square().mean() <= 4 * stock.square().mean() < starved.square().mean()


@pytest.mark.parametrize("lengths", FEEDS.values(), ids=FEEDS.keys())
def test_left_padding(tiny: TinyModel, lengths: list[int]) -> None:
    ids = tiny.ids.expand(2, -1).clone()
    ids[1, 40:] = tiny.ids[0, : TEXT_TOKENS - 40]
    mask = torch.ones_like(ids)
    mask[1, :40] = 0
    expected = feed(tiny.stock, ids, tiny.stock_cache(), lengths, attention_mask=mask)
    logits = feed(tiny.kiv, ids, tiny.cache(), lengths, attention_mask=mask)
    # What a padding query answers is nobody's business, and differs between transformers' own implementations.
    assert (logits - expected)[mask.bool()].abs().max().item() <= tiny.rounding()
