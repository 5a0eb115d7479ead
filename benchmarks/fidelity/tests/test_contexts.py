"""Continuing a context: a filled KIV cache is a prefilled one, and in exact mode full attention; on a tiny model."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from kiv_hf import KIVCache, KIVConfig
from transformers import Cache, Gemma3ForCausalLM, Gemma3TextConfig

from benchmarks.fidelity import contexts, model_level
from benchmarks.fidelity.contexts import FULL, asked, fill, kiv_continuation, prefill
from benchmarks.fidelity.continuation import Continuation, fork_stock
from benchmarks.fidelity.journal import Journal
from benchmarks.fidelity.model_level import agreement, divergence
from benchmarks.fidelity.queries import SampledQueries
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
    return Gemma3ForCausalLM(config).eval().double()  # right answers agree to 1e-10 on any processor


@pytest.fixture(scope="module", name="ids")
def _ids() -> torch.Tensor:
    return torch.randint(0, 97, (1, TOKENS + 12), generator=torch.Generator().manual_seed(1))


def stock(model: Gemma3ForCausalLM, cache: Cache) -> Continuation:
    return Continuation(model, cache, one_by_one=False)


def filled(model: Gemma3ForCausalLM, ids: torch.Tensor, config: KIVConfig) -> Continuation:
    kiv_model = twin(model, "kiv")
    cache = KIVCache(kiv_model.config, config)
    queries = SampledQueries(model)
    fill(kiv_model, cache, ids, prefill(queries.model, ids), queries)
    return kiv_continuation(kiv_model, cache)


def test_in_exact_mode_it_is_full_attention(model: Gemma3ForCausalLM, ids: torch.Tensor):
    context, following = ids[:, :TOKENS], ids[:, TOKENS:]
    full = stock(model, prefill(model, context)).feed(following)
    mine = filled(model, context, KIVConfig(hot_tokens=32, retrieve_tokens=None)).feed(following)
    torch.testing.assert_close(mine, full, rtol=1e-9, atol=1e-9)


def test_a_filled_cache_is_a_prefilled_one(model: Gemma3ForCausalLM, ids: torch.Tensor):
    context, following = ids[:, :TOKENS], ids[:, TOKENS:]
    config = KIVConfig(hot_tokens=32, page_tokens=8, index_channels=4, candidate_tokens=32, retrieve_tokens=8)
    kiv_model = twin(model, "kiv")
    cache = KIVCache(kiv_model.config, config)
    with torch.no_grad():
        kiv_model(input_ids=context, past_key_values=cache)
    expected = kiv_continuation(kiv_model, cache).feed(following)
    torch.testing.assert_close(filled(model, context, config).feed(following), expected, rtol=1e-9, atol=1e-9)
    exact = stock(model, prefill(model, context)).feed(following)
    assert not torch.allclose(expected, exact, rtol=1e-3, atol=1e-4), "nothing was left out: the test shows nothing"


def test_a_fork_leaves_the_context_alone(model: Gemma3ForCausalLM, ids: torch.Tensor):
    context, following = ids[:, :TOKENS], ids[:, TOKENS:]
    kiv_model = twin(model, "kiv")
    cache = KIVCache(kiv_model.config, KIVConfig(hot_tokens=32, page_tokens=8, candidate_tokens=32, retrieve_tokens=8))
    queries = SampledQueries(model)
    fill(kiv_model, cache, context, prefill(queries.model, context), queries)
    first = kiv_continuation(kiv_model, cache.fork()).feed(following)
    again = kiv_continuation(kiv_model, cache.fork()).feed(following)
    assert torch.equal(first, again)


def test_a_stock_fork_leaves_the_context_alone(model: Gemma3ForCausalLM, ids: torch.Tensor):
    context, following = ids[:, :TOKENS], ids[:, TOKENS:]
    full = prefill(model, context)
    first = stock(model, fork_stock(full)).feed(following)
    assert full.get_seq_length() == TOKENS
    assert torch.equal(first, stock(model, fork_stock(full)).feed(following))


@pytest.mark.parametrize("kind", ["kiv", "stock"])
def test_reading_is_feeding_without_the_logits_between(model: Gemma3ForCausalLM, ids: torch.Tensor, kind: str):
    context, following = ids[:, :TOKENS], ids[:, TOKENS:]
    config = KIVConfig(hot_tokens=32, page_tokens=8, index_channels=4, candidate_tokens=32, retrieve_tokens=8)
    make = (
        (lambda: filled(model, context, config)) if kind == "kiv" else (lambda: stock(model, prefill(model, context)))
    )
    fed, read = make(), make()
    torch.testing.assert_close(read.read(following), fed.feed(following)[-1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(read.read(ids[:, :1]), fed.feed(ids[:, :1])[-1], rtol=1e-9, atol=1e-9)


def test_greedy_stops_where_it_is_told(model: Gemma3ForCausalLM, ids: torch.Tensor):
    continuation = stock(model, prefill(model, ids[:, :TOKENS]))
    logits = continuation.feed(ids[:, TOKENS:])[-1]
    assert len(continuation.greedy(logits, 5, lambda found: len(found) == 2)) == 2


def test_divergence_is_that_by_hand():
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    assert divergence(logits, logits + 3).abs().max() < 1e-6
    expected = torch.tensor([0.75, 0.25])
    other = torch.tensor([0.5, 0.5])
    by_hand = 0.75 * torch.tensor(1.5).log() + 0.25 * torch.tensor(0.5).log()
    torch.testing.assert_close(divergence(expected.log()[None], other.log()[None])[0], by_hand)


def test_agreement_with_oneself_is_complete():
    made = torch.Generator().manual_seed(2)
    logits, following = torch.randn(6, 97, generator=made), torch.randint(0, 97, (1, 6), generator=made)
    mine = agreement(logits, logits, following)
    assert max(mine["divergence"]) < 1e-6
    assert all(mine["same_first"])
    assert len(mine["loss"]) == 5
    assert mine["loss"][0] == pytest.approx(-float(logits[0].log_softmax(dim=0)[following[0, 1]]))
    other = agreement(logits, logits.flip(1), following)
    assert max(other["divergence"]) > 1e-2
    assert not all(other["same_first"])


def test_a_small_run_has_tables_and_a_picture(
    model: Gemma3ForCausalLM, ids: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(contexts, "load_model", lambda name: model)
    monkeypatch.setattr(model_level, "haystack_tokens", lambda name, text, count: ids[:, -count:])
    monkeypatch.setattr(model_level, "QUICK_TOKENS", {"gemma": TOKENS})
    monkeypatch.setattr(model_level, "HOT_TOKENS", {"gemma": 160})
    small = asked(hot_tokens=32, page_tokens=8, index_channels=4, candidate_tokens=16, retrieve_tokens=4)
    monkeypatch.setattr(model_level, "asked", lambda hot_tokens: small)
    monkeypatch.setattr(model_level, "open_journal", lambda options, part: Journal(tmp_path / "a.jsonl"))
    options = argparse.Namespace(quick=True, models=["gemma"], longest=None, impl="reference")
    result = model_level.run(options)
    full, kiv, original = result.tables[0].rows
    assert full[1:] == (FULL, 0.0, 0.0, "100.0%", full[5], "+0.00%")
    assert kiv[2] > 0
    assert original[2] > 0
    result.write(tmp_path, model_level.draw)
    assert (tmp_path / "fidelity_model.png").stat().st_size > 10_000
