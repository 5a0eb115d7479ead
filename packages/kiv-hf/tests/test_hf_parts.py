"""Parts of the binding that no model of the other tests tells apart: unequal numbers of heads, both of two names."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hf_models import EXACT, TinyModel, falcon_h1, feed
from kiv_hf import KIVCache, use_kiv
from kiv_hf.attention.function import _sink_logits
from kiv_hf.attention.selection import with_selection
from kiv_hf.cache.adapters import Staged, repeated
from kiv_hf.cache.stages import seen_tokens
from kiv_hf.compare.divergence import KIVDivergenceError, Place, attends_everything, check_outputs
from kiv_hf.compare.pool import ComparePool
from kiv_reference import KIVConfig, ReferencePool
from kiv_reference.admissible import Violation, violation
from transformers import BloomConfig, BloomForCausalLM, DynamicCache


def draw(*shape: Any, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("heads", "times", "groups"), [(2, 3, 1), (3, 2, 1), (2, 3, 2), (1, 2, 2)])
def test_repeated_heads_are_put_in_order_and_back(heads: int, times: int, groups: int) -> None:
    """What the store answers is what full attention over the repeated heads gives, each head in its place."""
    staged = Staged(draw(1, heads, 5, 4), draw(1, heads, 5, 3, seed=2))
    key, value = (states.repeat(1, times, 1, 1) for states in staged)
    query = draw(1, heads * times * groups, 5, 4, seed=3)
    attend = torch.nn.functional.scaled_dot_product_attention
    adapted = repeated(torch.nn.Module(), staged, key, value)
    assert adapted is not None
    found = adapted.output(attend(adapted.query(query), *adapted.states, enable_gqa=True))
    torch.testing.assert_close(found, attend(query, key, value, enable_gqa=True))


def test_learned_sinks_by_either_name() -> None:
    """gpt-oss has one for each head, others one for each query."""
    by_head, by_query = draw(4), draw(2, 4, 3, 1)
    for given, expected in (({"s_aux": by_head}, by_head), ({"sinks": by_query}, by_query[..., 0])):
        found = _sink_logits(given)
        assert found is not None
        assert torch.equal(found, expected)
    assert _sink_logits({"s_aux": None, "sinks": None}) is None


def test_a_pipeline_asks_the_layers_in_use(gemma3: TinyModel) -> None:
    """The first layer of a kind, which another process runs, is asked for the length of the text before any runs."""
    cache = gemma3.cache()  # a sliding layer, and two of KIV's
    feed(gemma3.kiv, gemma3.ids, cache, [96])
    cache.layers[1].reset()
    assert seen_tokens(cache.layers, 1, pipeline=False) == 96  # a later layer has them
    cache.layers[2].reset()
    assert seen_tokens(cache.layers, 1, pipeline=False) == 0
    assert seen_tokens(cache.layers, 1, pipeline=True) == 96
    assert seen_tokens(cache.layers, 2, pipeline=True) == 0  # not the first of its kind


def test_a_comparison_sees_what_is_not_a_number() -> None:
    truth = draw(1, 2, 3, 4)
    check_outputs(Place(0, 0), truth, truth, truth, torch.zeros(1, 1))
    for wrong in (torch.nan, torch.inf):
        got = truth.clone()
        got[0, 1, 2, 3] = wrong
        with pytest.raises(KIVDivergenceError, match="head 1, query 2 of the call, channel 3"):
            check_outputs(Place(0, 0), got, truth, truth, torch.zeros(1, 1))
        with pytest.raises(KIVDivergenceError, match="head 1, query 2 of the call, channel 3"):
            check_outputs(Place(0, 0), truth, got, got, torch.zeros(1, 1))


def test_which_queries_attend_everything() -> None:
    config = KIVConfig(
        hot_tokens=4, sink_tokens=1, page_tokens=2, candidate_tokens=4, retrieve_tokens=2,
        prefill="retrieve", query_block_tokens=3, exact_suffix_tokens=2,
    )  # fmt: skip
    store = ReferencePool(config).layer_store()
    for tokens in (30, 8):
        store.append(draw(1, 1, tokens, 4), draw(1, 1, tokens, 4))
        store.attend(draw(1, 1, tokens, 4), scale=0.5)
    assert attends_everything(store.report)[:, 0].tolist() == [False] * 6 + [True] * 2
    streaming = replace(config, max_missed_mass=1e-9, exact_suffix_tokens=0)
    store = ReferencePool(streaming).layer_store()
    store.append(draw(1, 1, 30, 4), draw(1, 1, 30, 4))
    store.attend(draw(1, 1, 30, 4), scale=0.5)
    assert attends_everything(store.report)[-3:].all()


def test_a_comparison_sees_another_partition() -> None:
    """Before any attention: a token that is hot for the one and a sink for the other."""
    other = replace(EXACT, sink_tokens=EXACT.sink_tokens + 1)
    store = ComparePool(EXACT, candidate=lambda config: ReferencePool(other)).layer_store()
    with pytest.raises(KIVDivergenceError, match=r"SPEC 2\.2: another partition"):
        store.append(draw(1, 2, 30, 4), draw(1, 2, 30, 4))


def test_a_choice_is_judged_by_its_worst_pair() -> None:
    scores = [3.0, 1.0, 2.0, 0.0]
    assert violation(scores, [0.0] * 4, {0, 2}) is None
    assert violation(scores, [0.0] * 4, {0, 1}) == Violation(1, 2, 1.0)
    assert violation(scores, [0.5] * 4, {0, 1}) is None


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_a_selection_of_keys_cuts_the_mask(dtype: torch.dtype) -> None:
    mask = torch.ones(1, 1, 2, 6, dtype=torch.bool).tril(4)
    mask = mask if dtype == torch.bool else torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(dtype).min)
    module, indices = torch.nn.Module(), torch.tensor([[[0, 3], [5, 1]]])
    cut = with_selection(module, draw(1, 2, 2, 4), draw(1, 1, 6, 4), mask, indices, None)
    assert cut is not None
    seen = cut if dtype == torch.bool else cut == 0
    assert seen.flatten(0, 2).tolist() == [
        [True, False, False, True, False, False],
        [False, True] + [False] * 3 + [True],
    ]
    without = with_selection(module, draw(1, 2, 2, 4), draw(1, 1, 6, 4), None, indices, None)
    assert without is not None
    assert seen is not None
    assert torch.equal(without, seen)


def test_a_selection_of_blocks_cuts_the_mask() -> None:
    module: Any = torch.nn.Module()
    module.indexer = SimpleNamespace(block_size=2)
    blocks = torch.tensor([[[[1, -1]], [[0, 2]]]])  # of two groups of heads, one query
    cut = with_selection(module, draw(1, 4, 1, 4), draw(1, 2, 5, 4), None, None, blocks)
    first, second = [False, False, True, True, False], [True, True, False, False, True]
    assert cut is not None
    assert (cut[0, :, 0] == 0).tolist() == [first, first, second, second]


@torch.no_grad()
def test_a_hybrid_layer_reorders_both_parts() -> None:
    model = falcon_h1()
    model.set_attn_implementation("kiv")
    ids = torch.randint(2, 60, (2, 40), generator=torch.Generator().manual_seed(4))
    rows = torch.tensor([1, 0])
    cache, right = KIVCache(model.config, EXACT), KIVCache(model.config, EXACT)
    feed(model, ids, cache, [40])
    feed(model, ids[rows], right, [40])
    cache.reorder_cache(cast("torch.LongTensor", rows))
    assert torch.equal(feed(model, ids, cache, [1] * 10 + [30]), feed(model, ids, right, [1] * 10 + [30]))


@torch.no_grad()
def test_a_hook_of_the_attention_module_sees_the_new_class() -> None:
    """A hook of accelerate keeps the forward method that the module had: here that of the class before."""
    hooks = pytest.importorskip("accelerate.hooks")
    torch.manual_seed(2)
    model = BloomForCausalLM(BloomConfig(vocab_size=60, hidden_size=32, n_layer=2, n_head=4)).eval().double()
    ids = torch.randint(2, 60, (1, 60), generator=torch.Generator().manual_seed(4))
    expected = feed(model, ids, DynamicCache(config=model.config), [50, 10])
    for block in model.transformer.h:
        hooks.add_hook_to_module(block.self_attention, hooks.ModelHook())
    use_kiv(model)
    torch.testing.assert_close(feed(model, ids, KIVCache(model.config, EXACT), [50, 10]), expected)
