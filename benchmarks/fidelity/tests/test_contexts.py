"""Continuing a context: a filled KIV cache is a prefilled one, and in exact mode full attention; on a tiny model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from kiv_hf import KIVCache, KIVConfig

from benchmarks.fidelity.contexts import fill, prefill
from benchmarks.fidelity.continuation import Continuation, fork_stock
from benchmarks.fidelity.queries import SampledQueries
from benchmarks.fidelity.tests.tiny import tiny_gemma
from benchmarks.models import twin

if TYPE_CHECKING:
    from transformers import Cache, Gemma3ForCausalLM

TOKENS = 300


@pytest.fixture(scope="module", name="model")
def _model() -> Gemma3ForCausalLM:
    return tiny_gemma(sliding_window=48).double()  # right answers agree to 1e-10 on any processor


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
    return Continuation(kiv_model, cache, one_by_one=True)


def test_in_exact_mode_it_is_full_attention(model: Gemma3ForCausalLM, ids: torch.Tensor) -> None:
    context, following = ids[:, :TOKENS], ids[:, TOKENS:]
    full = stock(model, prefill(model, context)).feed(following)
    mine = filled(model, context, KIVConfig(hot_tokens=32, retrieve_tokens=None)).feed(following)
    torch.testing.assert_close(mine, full, rtol=1e-9, atol=1e-9)


def test_a_filled_cache_is_a_prefilled_one(model: Gemma3ForCausalLM, ids: torch.Tensor) -> None:
    context, following = ids[:, :TOKENS], ids[:, TOKENS:]
    config = KIVConfig(hot_tokens=32, page_tokens=8, index_channels=4, candidate_tokens=32, retrieve_tokens=8)
    kiv_model = twin(model, "kiv")
    cache = KIVCache(kiv_model.config, config)
    with torch.no_grad():
        kiv_model(input_ids=context, past_key_values=cache)
    expected = Continuation(kiv_model, cache, one_by_one=True).feed(following)
    torch.testing.assert_close(filled(model, context, config).feed(following), expected, rtol=1e-9, atol=1e-9)
    exact = stock(model, prefill(model, context)).feed(following)
    assert not torch.allclose(expected, exact, rtol=1e-3, atol=1e-4), "nothing was left out: the test shows nothing"


def test_a_fork_leaves_the_context_alone(model: Gemma3ForCausalLM, ids: torch.Tensor) -> None:
    context, following = ids[:, :TOKENS], ids[:, TOKENS:]
    kiv_model = twin(model, "kiv")
    cache = KIVCache(kiv_model.config, KIVConfig(hot_tokens=32, page_tokens=8, candidate_tokens=32, retrieve_tokens=8))
    queries = SampledQueries(model)
    fill(kiv_model, cache, context, prefill(queries.model, context), queries)
    first = Continuation(kiv_model, cache.fork(), one_by_one=True).feed(following)
    again = Continuation(kiv_model, cache.fork(), one_by_one=True).feed(following)
    assert torch.equal(first, again)


def test_a_stock_fork_leaves_the_context_alone(model: Gemma3ForCausalLM, ids: torch.Tensor) -> None:
    context, following = ids[:, :TOKENS], ids[:, TOKENS:]
    full = prefill(model, context)
    first = stock(model, fork_stock(full)).feed(following)
    assert full.get_seq_length() == TOKENS
    assert torch.equal(first, stock(model, fork_stock(full)).feed(following))


@pytest.mark.parametrize("kind", ["kiv", "stock"])
def test_reading_is_feeding_without_the_logits_between(model: Gemma3ForCausalLM, ids: torch.Tensor, kind: str) -> None:
    context, following = ids[:, :TOKENS], ids[:, TOKENS:]
    config = KIVConfig(hot_tokens=32, page_tokens=8, index_channels=4, candidate_tokens=32, retrieve_tokens=8)
    make = (
        (lambda: filled(model, context, config)) if kind == "kiv" else (lambda: stock(model, prefill(model, context)))
    )
    fed, read = make(), make()
    torch.testing.assert_close(read.read(following), fed.feed(following)[-1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(read.read(ids[:, :1]), fed.feed(ids[:, :1])[-1], rtol=1e-9, atol=1e-9)


def test_greedy_stops_where_it_is_told(model: Gemma3ForCausalLM, ids: torch.Tensor) -> None:
    continuation = stock(model, prefill(model, ids[:, :TOKENS]))
    logits = continuation.feed(ids[:, TOKENS:])[-1]
    assert len(continuation.greedy(logits, 5, lambda found: len(found) == 2)) == 2
