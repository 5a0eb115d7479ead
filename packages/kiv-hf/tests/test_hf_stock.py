"""Without a KIVCache the attention "kiv" is transformers' own: sdpa, or eager where a model needs what sdpa lacks."""

from __future__ import annotations

import pytest
import torch
from hf_models import FEEDS, TinyModel, feed
from kiv_hf.attention.stock import eager_only, stock_attention, stock_mask
from kiv_reference.errors import KIVShapeError, KIVUnsupportedError
from transformers import GptOssConfig, LlamaConfig, StaticCache


@pytest.mark.parametrize("lengths", FEEDS.values(), ids=FEEDS.keys())
@pytest.mark.parametrize("padded", [False, True])
def test_a_dynamic_cache_gives_the_same_bits(tiny: TinyModel, lengths: list[int], padded: bool) -> None:
    mask = torch.ones(1, 96, dtype=torch.long)
    mask[0, : 7 if padded else 0] = 0
    expected = feed(tiny.stock, tiny.ids, tiny.stock_cache(), lengths, attention_mask=mask)
    got = feed(tiny.kiv, tiny.ids, tiny.stock_cache(), lengths, attention_mask=mask)
    assert torch.equal(got[:, 7:], expected[:, 7:])


def test_a_dynamic_cache_after_a_kiv_cache(tiny: TinyModel) -> None:
    """What a KIVCache left in the thread does not leak into another cache's forward pass."""
    feed(tiny.kiv, tiny.ids, tiny.cache(), FEEDS["chunks"])
    expected = feed(tiny.stock, tiny.ids, tiny.stock_cache(), FEEDS["chunks"])
    assert torch.equal(feed(tiny.kiv, tiny.ids, tiny.stock_cache(), FEEDS["chunks"]), expected)


@pytest.mark.parametrize("lengths", [[40, 1, 55], [96]])
def test_a_static_cache_gives_the_same_bits(llama: TinyModel, lengths: list[int]) -> None:
    caches = [StaticCache(config=llama.config, max_cache_len=128) for _ in range(2)]
    expected = feed(llama.stock, llama.ids, caches[0], lengths)
    assert torch.equal(feed(llama.kiv, llama.ids, caches[1], lengths), expected)


@pytest.mark.gradients
def test_training_without_a_cache(tiny: TinyModel) -> None:
    """Gradients of every weight, bit for bit."""
    for model in (tiny.kiv, tiny.stock):
        model.train()
        model(tiny.ids, labels=tiny.ids, use_cache=False).loss.backward()
    for ours, theirs in zip(tiny.kiv.parameters(), tiny.stock.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        assert ours.grad is None or torch.equal(ours.grad, theirs.grad)


def test_packed_sequences_without_a_cache(llama: TinyModel) -> None:
    positions = torch.cat([torch.arange(40), torch.arange(56)])[None]
    settings = {"position_ids": positions, "use_cache": False}
    assert torch.equal(llama.kiv(llama.ids, **settings).logits, llama.stock(llama.ids, **settings).logits)


def test_a_stock_layer_that_gets_the_mask_of_a_kiv_layer(llama: TinyModel) -> None:
    """None means the lower-right triangle to KIV, the upper-left one to sdpa: it is spelled out."""
    cache = llama.cache()
    llama.kiv(llama.ids[:, :90], past_key_values=cache)
    llama.kiv(llama.ids[:, 90:], past_key_values=cache)  # six queries over 96 tokens: plain
    module = llama.kiv.model.layers[0].self_attn
    query, key, value = torch.randn(3, 1, 4, 96, 8, dtype=torch.float64).unbind(0)
    got, _ = stock_attention(module, query[:, :, -6:], key[:, :2], value[:, :2], None)
    whole, _ = stock_attention(module, query, key[:, :2], value[:, :2], None)
    assert (got - whole[:, -6:]).abs().max().item() < 1e-10
    padding = torch.arange(96)[None] > 2
    got, _ = stock_attention(module, query[:, :, -6:], key[:, :2], value[:, :2], padding)
    cut, _ = stock_attention(module, query[:, :, 3:], key[:, :2, 3:], value[:, :2, 3:], None)
    assert (got - cut[:, -6:]).abs().max().item() < 1e-10
    with pytest.raises(KIVShapeError, match="cover every key"):
        stock_attention(module, query[:, :, -6:], key[:, :2], value[:, :2], padding[:, 1:])


def test_softcap_without_an_eager_function() -> None:
    query, key = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4)
    with pytest.raises(KIVUnsupportedError, match="eager_attention_forward"):
        stock_attention(torch.nn.Identity(), query, key, key, None, softcap=2.0)


def test_models_that_do_not_support_sdpa_get_the_masks_of_eager() -> None:
    """Some of them add to the mask or widen it: its form, numbers to add or truth values, matters."""
    assert eager_only(GptOssConfig)
    assert not eager_only(LlamaConfig)
    assert not eager_only(type(None))
    sizes = {"batch_size": 1, "q_length": 3, "kv_length": 5, "q_offset": 2}
    added, chosen = stock_mask(GptOssConfig(), **sizes), stock_mask(LlamaConfig(), **sizes)
    assert added is not None
    assert added.is_floating_point()
    assert chosen is not None
    assert chosen.dtype == torch.bool
