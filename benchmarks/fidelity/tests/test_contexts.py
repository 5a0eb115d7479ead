"""Continuing a context: a filled KIV cache is a prefilled one, and in exact mode full attention; on a tiny model."""

from __future__ import annotations

import pytest
import torch
from kiv_hf import KIVCache, KIVConfig
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from benchmarks.fidelity.contexts import Continuation, fill, prefill, quantise
from benchmarks.fidelity.model_level import common_prefix, divergence
from benchmarks.models import twin

TOKENS = 300


@pytest.fixture(scope="module", name="model")
def _model() -> Gemma3ForCausalLM:
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=48,
        layer_types=["sliding_attention", "full_attention"] * 2,
        max_position_embeddings=1024,
    )
    return Gemma3ForCausalLM(config).eval()


@pytest.fixture(scope="module", name="ids")
def _ids() -> torch.Tensor:
    return torch.randint(0, 97, (1, TOKENS + 12), generator=torch.Generator().manual_seed(1))


def filled(model: Gemma3ForCausalLM, ids: torch.Tensor, config: KIVConfig) -> Continuation:
    kiv_model = twin(model, "kiv")
    cache = KIVCache(kiv_model.config, config)
    fill(kiv_model, cache, ids, prefill(model, ids))
    return Continuation(kiv_model, cache)


def test_in_exact_mode_it_is_full_attention(model: Gemma3ForCausalLM, ids: torch.Tensor):
    context, following = ids[:, :TOKENS], ids[:, TOKENS:]
    full = Continuation(model, prefill(model, context)).feed(following)
    mine = filled(model, context, KIVConfig(hot_tokens=32, retrieve_tokens=None)).feed(following)
    torch.testing.assert_close(mine, full, rtol=1e-3, atol=1e-4)


def test_a_filled_cache_is_a_prefilled_one(model: Gemma3ForCausalLM, ids: torch.Tensor):
    context, following = ids[:, :TOKENS], ids[:, TOKENS:]
    config = KIVConfig(hot_tokens=32, page_tokens=8, candidate_pages=4, retrieve_tokens=8)
    kiv_model = twin(model, "kiv")
    cache = KIVCache(kiv_model.config, config)
    with torch.no_grad():
        kiv_model(input_ids=context, past_key_values=cache)
    expected = Continuation(kiv_model, cache).feed(following)
    torch.testing.assert_close(filled(model, context, config).feed(following), expected, rtol=1e-3, atol=1e-4)
    exact = Continuation(model, prefill(model, context)).feed(following)
    assert not torch.allclose(expected, exact, rtol=1e-3, atol=1e-4), "nothing was left out: the test shows nothing"


def test_a_fork_leaves_the_context_alone(model: Gemma3ForCausalLM, ids: torch.Tensor):
    context, following = ids[:, :TOKENS], ids[:, TOKENS:]
    kiv_model = twin(model, "kiv")
    cache = KIVCache(kiv_model.config, KIVConfig(hot_tokens=32, candidate_pages=8))
    fill(kiv_model, cache, context, prefill(model, context))
    first = Continuation(kiv_model, cache.fork()).feed(following)
    again = Continuation(kiv_model, cache.fork()).feed(following)
    assert torch.equal(first, again)


def test_a_quantised_cache_comes_near(ids: torch.Tensor):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    llama = LlamaForCausalLM(config).eval()
    context, following = ids[:, :TOKENS], ids[:, TOKENS:]
    full = prefill(llama, context)
    cache = quantise(llama, "fp8", full)
    assert cache.get_seq_length() == TOKENS
    mine = Continuation(llama, cache).feed(following)
    exact = Continuation(llama, full).feed(following)
    assert 0 < (mine - exact).abs().max() < 0.1


def test_greedy_stops_where_it_is_told(model: Gemma3ForCausalLM, ids: torch.Tensor):
    continuation = Continuation(model, prefill(model, ids[:, :TOKENS]))
    logits = continuation.feed(ids[:, TOKENS:])[-1]
    assert len(continuation.greedy(logits, 5, lambda found: len(found) == 2)) == 2


def test_divergence_and_prefix():
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    assert divergence(logits, logits + 3).abs().max() < 1e-6
    expected = torch.tensor([0.75, 0.25])
    other = torch.tensor([0.5, 0.5])
    by_hand = 0.75 * torch.tensor(1.5).log() + 0.25 * torch.tensor(0.5).log()
    torch.testing.assert_close(divergence(expected.log()[None], other.log()[None])[0], by_hand)
    assert common_prefix([1, 2, 3], [1, 2, 4]) == 2
    assert common_prefix([1, 2], [1, 2]) == 2
