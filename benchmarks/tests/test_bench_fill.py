"""Random contexts: every kind of cache must hold the same numbers, and the model must take them for its own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from kiv_hf import KIVCache, KIVConfig
from transformers import DynamicCache, Gemma3ForCausalLM

from benchmarks.fidelity.tests.tiny import tiny_gemma
from benchmarks.fill import fill, measure_spreads, random_chunks
from benchmarks.models import twin
from benchmarks.original import original_pool
from benchmarks.subjects import Clocks, Subject

TOKENS = 900


@pytest.fixture(scope="module")
def model() -> Gemma3ForCausalLM:
    return tiny_gemma(sliding_window=128).bfloat16()


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(97, (1, 300), generator=torch.Generator().manual_seed(0))


def filled(model: Any, ids: torch.Tensor, cache: Any, attention: Any, tokens: int = TOKENS) -> Subject:
    subject = Subject("", twin(model, attention), cache)
    fill(subject, measure_spreads(model, ids), ids, tokens, seed=3)
    return subject


def test_all_caches_hold_the_same_context(model: Gemma3ForCausalLM, ids: torch.Tensor) -> None:
    kiv_model = twin(model, "kiv")
    exact = KIVConfig(retrieve_tokens=None, hot_tokens=64, page_tokens=64)
    plain = filled(model, ids, DynamicCache(config=model.config), "sdpa")
    kiv = filled(model, ids, KIVCache(kiv_model.config, exact, impl="reference"), "kiv")
    original = filled(
        model, ids, KIVCache(kiv_model.config, KIVConfig(), impl=original_pool), "kiv"
    )  # all of it is hot
    assert kiv.cache.tokens().cold_ram > 700
    truth = Subject("", copy.deepcopy(plain.model).double(), copy.deepcopy(plain.cache))
    for layer in truth.cache.layers:
        layer.keys, layer.values, layer.dtype = layer.keys.double(), layer.values.double(), torch.float64
    logits = [
        torch.stack([subject.step(ids[:, number : number + 1]).double() for number in range(3)])
        for subject in (truth, plain, kiv, original)
    ]
    # In bfloat16 KIV and the original err as the plain cache does, measured against float64.
    stock, *errors = [(answer - logits[0]).square().mean() for answer in logits[1:]]
    assert max(errors) <= 4 * stock
    assert {layer.get_seq_length() for layer in plain.cache.layers} == {TOKENS + 3}
    assert {layer.get_seq_length() for layer in kiv.cache.layers} == {TOKENS + 3}


def test_filling_can_be_ended_between_chunks(model: Gemma3ForCausalLM, ids: torch.Tensor) -> None:
    class Ended(Exception):
        pass

    def between() -> None:
        raise Ended

    spreads = measure_spreads(model, ids)
    kiv_model = twin(model, "kiv")
    subjects = (
        Subject("", model, DynamicCache(config=model.config)),
        Subject("", kiv_model, KIVCache(kiv_model.config, KIVConfig(), impl="reference")),
    )
    for subject in subjects:
        with pytest.raises(Ended):
            fill(subject, spreads, ids, TOKENS, 3, between)


def test_the_context_matters(model: Gemma3ForCausalLM, ids: torch.Tensor) -> None:
    short, long = (filled(model, ids, DynamicCache(config=model.config), "sdpa", tokens) for tokens in (500, TOKENS))
    assert not torch.equal(short.step(ids[:, :1]), long.step(ids[:, :1]))


def test_random_chunks_repeat_and_follow_the_spread(model: Gemma3ForCausalLM, ids: torch.Tensor) -> None:
    spread = measure_spreads(model, ids)[1]
    first, second = (torch.cat([k for k, _ in random_chunks(spread, 5000, seed=1, chunk=512)], 2) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (1, 1, 5000, 16)
    torch.testing.assert_close(first.float().mean(2, keepdim=True), spread.key.mean, rtol=0, atol=0.1)
    torch.testing.assert_close(first.float().std(2, keepdim=True), spread.key.deviation, rtol=0.1, atol=0.02)


def test_clocks_time_every_layer_and_leave_no_trace(model: Gemma3ForCausalLM, ids: torch.Tensor) -> None:
    subject = filled(model, ids, KIVCache(twin(model, "kiv").config, KIVConfig(), impl="reference"), "kiv")
    before = subject.stores()
    with Clocks(subject) as clocks:
        subject.step(ids[:, :1])
        append_s, attend_s = clocks.read()
        assert append_s > 0
        assert attend_s > 0
        assert clocks.read() == (0.0, 0.0)
    assert subject.stores() == before


def test_twins_share_weights_and_nothing_else(model: Gemma3ForCausalLM) -> None:
    second = twin(model, "kiv")
    assert all(mine is theirs for mine, theirs in zip(model.parameters(), second.parameters(), strict=True))
    attention = [one.config._attn_implementation for one in (model, second)]  # pyright: ignore[reportPrivateUsage]
    assert attention == ["sdpa", "kiv"]
