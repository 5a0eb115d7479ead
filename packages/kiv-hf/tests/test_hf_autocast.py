"""A float32 model under autocast: KIV errs as the stock cache does, measured against float64."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hf_models import EXACT, FEEDS, FULL_BUDGET, STARVED, TinyModel, feed, pair
from kiv_hf import use_kiv
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

if TYPE_CHECKING:
    from kiv_reference import KIVConfig

GPT_NEO: dict[str, Any] = {"num_layers": 1, "num_heads": 4, "attention_types": [[["global"], 1]]}
LATENT: dict[str, Any] = {
    "num_hidden_layers": 2, "first_k_dense_replace": 2, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4,
    "head_dim": 4,
}  # fmt: skip

MODELS = {
    "llama": lambda: pair(LlamaConfig, LlamaForCausalLM, dtype=torch.float32, num_hidden_layers=2),
    "gemma3": lambda: pair(
        Gemma3TextConfig, Gemma3ForCausalLM, dtype=torch.float32, num_hidden_layers=2, sliding_window=12,
        layer_types=["sliding_attention", "full_attention"], query_pre_attn_scalar=8,
    ),
}  # fmt: skip


@pytest.fixture(params=MODELS)
def single(request: pytest.FixtureRequest) -> TinyModel:
    return MODELS[request.param]()


def truth(model: Any) -> torch.Tensor:
    twin = TinyModel(model.kiv, copy.deepcopy(model.stock).double(), model.ids)
    return feed(twin.stock, twin.ids, twin.stock_cache(), FEEDS["chunks"])


def mixed(model: Any, ids: torch.Tensor, cache: Any, lengths: list[int]) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return feed(model, ids, cache, lengths).double()


@pytest.mark.parametrize("config", [EXACT, FULL_BUDGET], ids=["exact", "retrieval"])
@pytest.mark.parametrize("lengths", FEEDS.values(), ids=FEEDS.keys())
def test_logits(single: TinyModel, config: KIVConfig, lengths: list[int]) -> None:
    right = truth(single)
    stock = mixed(single.stock, single.ids, single.stock_cache(), lengths) - right
    logits = mixed(single.kiv, single.ids, single.cache(config), lengths) - right
    starved = mixed(single.kiv, single.ids, single.cache(STARVED), lengths) - right
    assert logits.square().mean() <= 4 * stock.square().mean() < starved.square().mean()


def test_generate(single: TinyModel) -> None:
    cache = single.cache()
    with torch.autocast("cpu", torch.bfloat16):
        single.kiv.generate(single.ids, past_key_values=cache, max_new_tokens=5, do_sample=False)
    assert cache.get_seq_length() == single.ids.shape[1] + 4


def test_autocast_may_end_between_two_calls(single: TinyModel) -> None:
    right = truth(single)[:, 60:]
    errors = []
    for model, cache in ((single.stock, single.stock_cache()), (single.kiv, single.cache())):
        mixed(model, single.ids[:, :60], cache, [60])
        errors.append((feed(model, single.ids[:, 60:], cache, [36]).double() - right).square().mean())
    assert errors[1] <= 4 * errors[0]


def test_autocast_may_begin_between_two_calls() -> None:
    """Here keys and values are of autocast's dtype: they join the wider ones, as in a plain cache."""
    model = pair(GPTNeoConfig, GPTNeoForCausalLM, dtype=torch.float32, **GPT_NEO)
    use_kiv(model.kiv)
    right = truth(model)[:, 60:]
    errors = []
    for single, cache in ((model.stock, model.stock_cache()), (model.kiv, model.cache())):
        feed(single, model.ids[:, :60], cache, [60])
        errors.append((mixed(single, model.ids[:, 60:], cache, [36]) - right).square().mean())
    assert errors[1] <= 4 * errors[0]


@pytest.mark.parametrize("lengths", FEEDS.values(), ids=FEEDS.keys())
def test_latents(lengths: list[int]) -> None:
    """Keys that a model joins from two dtypes, and queries of the narrower one."""
    model = pair(DeepseekV3Config, DeepseekV3ForCausalLM, dtype=torch.float32, **LATENT)
    right = truth(model)
    stock = mixed(model.stock, model.ids, model.stock_cache(), lengths) - right
    logits = mixed(model.kiv, model.ids, model.cache(), lengths) - right
    assert logits.square().mean() <= 4 * stock.square().mean()
