"""A change of the batch or the length that a cache refuses is refused by name, and leaves every layer as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
from hf_models import FULL_BUDGET, TinyModel, falcon_h1, pair
from kiv_hf import KIVCache, KIVConfig, use_kiv
from kiv_reference.errors import KIVBudgetError, KIVUnsupportedError, KIVUsageError
from transformers import (
    DynamicCache,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

if TYPE_CHECKING:
    from collections.abc import Callable

RETRIEVAL = KIVConfig(hot_tokens=8, sink_tokens=2, page_tokens=4, candidate_tokens=12, retrieve_tokens=5)

ROWS = (2.5, "a", [0, 1], None, torch.tensor([0.5, 1.7]))


def llama() -> TinyModel:
    return pair(LlamaConfig, LlamaForCausalLM, num_hidden_layers=2)


def gemma3() -> TinyModel:
    return pair(
        Gemma3TextConfig, Gemma3ForCausalLM, num_hidden_layers=2, sliding_window=12,
        layer_types=["sliding_attention", "full_attention"], query_pre_attn_scalar=8,
    )  # fmt: skip


@pytest.fixture(params=[llama, gemma3])
def filled(request: pytest.FixtureRequest) -> tuple[TinyModel, KIVCache, DynamicCache]:
    model = request.param()
    cache, stock = model.cache(), model.stock_cache()
    with torch.no_grad():
        model.kiv(model.ids[:, :60], past_key_values=cache)
        model.stock(model.ids[:, :60], past_key_values=stock)
    return model, cache, stock


def require_equal(model: Any, cache: Any, stock: Any) -> None:
    with torch.no_grad():
        logits = model.kiv(model.ids[:, 60:], past_key_values=cache).logits
        right = model.stock(model.ids[:, 60:], past_key_values=stock).logits
    torch.testing.assert_close(logits, right, rtol=0, atol=1e-10)


@pytest.mark.parametrize("operation", ["reorder_cache", "batch_select_indices"])
def test_rows_that_are_none(filled: tuple[TinyModel, KIVCache, DynamicCache], operation: str) -> None:
    model, cache, stock = filled
    batch = model.ids.shape[0]
    for rows in (*ROWS, torch.tensor([batch] * batch), torch.tensor([], dtype=torch.long)):
        with pytest.raises(KIVUsageError):
            getattr(cache, operation)(rows)
    require_equal(model, cache, stock)


def test_too_few_rows(filled: tuple[TinyModel, KIVCache, DynamicCache]) -> None:
    """A window of transformers' own would take them, and hold fewer sequences than the KIV layers."""
    model, cache, stock = filled
    with pytest.raises(KIVUsageError):
        cache.reorder_cache(cast("torch.LongTensor", torch.zeros(model.ids.shape[0] + 1, dtype=torch.long)))
    require_equal(model, cache, stock)


@pytest.mark.parametrize("repeats", [0, -1, 2.5, "a", None, True, [2]])
def test_repeats_that_are_none(filled: tuple[TinyModel, KIVCache, DynamicCache], repeats: Any) -> None:
    model, cache, stock = filled
    with pytest.raises(KIVUsageError):
        cache.batch_repeat_interleave(repeats)
    require_equal(model, cache, stock)


@pytest.mark.parametrize("tokens", [2.5, float("nan"), "a", None, [1], torch.tensor([1, 2]), -2.0])
def test_lengths_that_are_none(filled: tuple[TinyModel, KIVCache, DynamicCache], tokens: Any) -> None:
    model, cache, stock = filled
    with pytest.raises(KIVUsageError):
        cache.crop(tokens)
    require_equal(model, cache, stock)


@pytest.mark.parametrize("operation", ["batch_repeat_interleave", "batch_select_indices"])
def test_linear_state_behind_full_attention(operation: str) -> None:
    config = Lfm2Config(
        vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, layer_types=["full_attention", "conv"],
    )  # fmt: skip
    model = use_kiv(Lfm2ForCausalLM(config).double().eval())
    cache = KIVCache(model.config, RETRIEVAL)
    ids = torch.randint(3, 97, (2, 40))
    with torch.no_grad():
        model(ids, past_key_values=cache)
        twin = cache.fork()
        with pytest.raises(KIVUnsupportedError):
            getattr(cache, operation)(2 if operation == "batch_repeat_interleave" else torch.tensor([1]))
        again, right = (model(ids[:, :1], past_key_values=kept).logits for kept in (cache, twin))
    assert torch.equal(again, right)


def test_a_mask_of_another_length() -> None:
    model = llama()
    cache = model.cache()
    with torch.no_grad():
        model.kiv(two_rows(model), past_key_values=cache)
    with pytest.raises(KIVUsageError, match="of each sequence"):
        cache.batch_select_indices(torch.tensor([True]))


def two_rows(model: Any) -> torch.Tensor:
    return torch.cat([model.ids[:1, :60], model.ids[:1, :60].flip(1)])


def noted(change: Callable[[Any], object], changed: list[Any]) -> Callable[[Any], None]:
    def call(rows: Any) -> None:
        change(rows)
        changed.append(rows)

    return call


@pytest.mark.parametrize("rows", [3, torch.tensor([0, 0, 1, 1, 0]), torch.tensor([1, 0, 1, 0, 1])])
def test_a_budget_that_has_room_in_some_layers(rows: int | torch.Tensor) -> None:
    """The layers that had room take the change back: the text goes on with the sequences that it had."""
    model = llama()
    ids, config = two_rows(model), replace(FULL_BUDGET, candidate_tokens=12, prefill="exact")
    operation = "batch_repeat_interleave" if isinstance(rows, int) else "batch_select_indices"
    changed_first = False
    with torch.no_grad():
        whole = model.cache(config)
        right = model.kiv(ids, past_key_values=whole).logits[:, -1:]
        held = whole.memory().device
        getattr(whole, operation)(rows)
        more = whole.memory().device - held
        for budget in range(held, held + 2 * more, more // 12):
            cache = model.cache(replace(config, device_bytes=budget))
            try:
                model.kiv(ids[:, :59], past_key_values=cache)
            except KIVBudgetError:
                continue
            first, changed = cache.kiv_layers()[0].store, []
            for name in ("select", "repeat_interleave"):
                setattr(first, name, noted(getattr(first, name), changed))
            try:
                getattr(cache, operation)(rows)
            except KIVBudgetError:
                changed_first |= bool(changed)
                logits = model.kiv(ids[:, 59:], past_key_values=cache).logits
                assert {report.blocks[0].mode for report in cache.reports().values()} == {"retrieve"}
                torch.testing.assert_close(logits, right, rtol=0, atol=1e-10)
            cache.close()
    assert changed_first


def test_a_budget_and_a_change_that_drops_a_sequence() -> None:
    model = llama()
    config, told = RETRIEVAL, set()
    with torch.no_grad():
        whole = model.cache(config)
        model.kiv(two_rows(model), past_key_values=whole)
        held = whole.memory().device
        for budget in range(held, 4 * held, held // 12):
            cache = model.cache(replace(config, device_bytes=budget))
            try:
                model.kiv(two_rows(model), past_key_values=cache)
            except KIVBudgetError:
                continue
            try:
                cache.batch_select_indices(torch.tensor([0] * 12))
            except KIVBudgetError as error:
                told.add("Call cache.reset()" in str(error))
    assert True in told


def test_a_refused_reordering_of_a_hybrid(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is taken back is the linear state too."""
    model = use_kiv(falcon_h1())
    ids = torch.randint(3, 60, (2, 61), generator=torch.Generator().manual_seed(0))
    cache = KIVCache(model.config, RETRIEVAL)

    def full(rows: Any) -> None:
        raise KIVBudgetError("full")

    with torch.no_grad():
        model(ids[:, :60], past_key_values=cache)
        twin = cache.fork()
        with monkeypatch.context() as patch:
            patch.setattr(cache.kiv_layers()[max(cache.kiv_layers())].store, "reorder", full)
            with pytest.raises(KIVBudgetError, match="full"):
                cache.reorder_cache(cast("torch.LongTensor", torch.tensor([1, 0])))
        again, right = (model(ids[:, 60:], past_key_values=kept).logits for kept in (cache, twin))
    assert torch.equal(again, right)


def test_an_empty_cache_has_no_batch() -> None:
    model = llama()
    cache = model.cache()
    with torch.no_grad():
        model.kiv(two_rows(model), past_key_values=cache)
    cache.reset()
    cache.batch_select_indices(torch.tensor([True, False, True]))
    assert cache.get_seq_length() == 0
