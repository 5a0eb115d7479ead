"""`KIVCache` itself: its layers, its life cycle (SPEC 9), what it reports, which implementation it uses."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
from hf_models import EXACT, FULL_BUDGET, TinyModel, falcon_h1, feed
from kiv_hf import KIVCache, KIVConfig, __all__
from kiv_hf.cache.hybrid import KIVHybridLayer
from kiv_hf.cache.layer import KIVLayer
from kiv_hf.impls import DEFAULT_IMPL, resolve_impl
from kiv_reference import ReferencePool
from kiv_reference.errors import KIVUnsupportedError, KIVUsageError
from transformers import DynamicCache
from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING, DynamicSlidingWindowLayer

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST, REST = slice(None, 60), slice(60, None)


def continued(tiny: TinyModel, cache: Any, ids: torch.Tensor | None = None) -> Any:
    """Return logits of the text's rest on `cache`."""
    return tiny.kiv((tiny.ids if ids is None else ids)[:, REST], past_key_values=cache).logits


def filled(tiny: TinyModel, config: KIVConfig = EXACT, ids: torch.Tensor | None = None) -> KIVCache:
    cache = tiny.cache(config)
    tiny.kiv((tiny.ids if ids is None else ids)[:, FIRST], past_key_values=cache)
    return cache


class TestLayers:
    def test_full_attention_is_replaced_and_the_rest_is_not(self, gemma3: TinyModel) -> None:
        kinds = [type(layer) for layer in gemma3.cache().layers]
        assert kinds == [DynamicSlidingWindowLayer, KIVLayer, KIVLayer]
        assert KIVLayer not in DYNAMIC_LAYER_TYPE_MAPPING.values()

    def test_it_is_a_dynamic_cache_that_is_never_compiled(self, llama: TinyModel) -> None:
        assert isinstance(llama.cache(), DynamicCache)
        assert not llama.cache().is_compileable

    def test_layers_made_on_demand(self, llama: TinyModel) -> None:
        """Configurations that name no layers get theirs with the first update."""
        cache = llama.cache()
        cache.layers, cache.layer_class_to_replicate = [], cache._new_layer
        logits = feed(llama.kiv, llama.ids, cache, [50, 46])
        expected = feed(llama.stock, llama.ids, llama.stock_cache(), [50, 46])
        assert [type(layer) for layer in cache.layers] == [KIVLayer, KIVLayer]
        assert (logits - expected).abs().max().item() <= llama.rounding()

    def test_keys_and_values_are_not_to_be_had(self, llama: TinyModel) -> None:
        layer = llama.cache().kiv_layers()[0]
        assert layer.keys is None
        assert layer.values is None
        layer = filled(llama).kiv_layers()[0]
        with pytest.raises(KIVUnsupportedError, match="no tensor of all keys"):
            _ = layer.keys
        with pytest.raises(KIVUnsupportedError, match="no tensor of all values"):
            _ = layer.values
        with pytest.raises(KIVUnsupportedError, match="update alone"):
            layer.keys = torch.zeros(1)


class TestLifeCycle:
    @pytest.mark.parametrize("config", [EXACT, FULL_BUDGET], ids=["exact", "full budget"])
    def test_crop_and_go_on(self, tiny: TinyModel, config: KIVConfig) -> None:
        cache = tiny.cache(config)
        cache.activate_past_recording()
        tiny.kiv(tiny.ids[:, FIRST], past_key_values=cache)
        tiny.kiv(tiny.ids[:, 10:25], past_key_values=cache)  # a draft that is taken back
        cache.crop(-15)
        assert cache.get_seq_length() == 60
        cache.crop(0)
        expected = feed(tiny.stock, tiny.ids, tiny.stock_cache(), [60, 36])[:, REST]
        assert (continued(tiny, cache) - expected).abs().max().item() <= tiny.rounding()

    def test_crop_into_the_cold_part_and_beyond(self, llama: TinyModel) -> None:
        cache = filled(llama)
        cache.crop(-50)
        logits = llama.kiv(llama.ids[:, 10:], past_key_values=cache).logits
        expected = feed(llama.stock, llama.ids, llama.stock_cache(), [10, 86])[:, 10:]
        assert (logits - expected).abs().max().item() <= llama.rounding()
        cache.crop(-1000)
        assert cache.get_seq_length() == 0
        with pytest.raises(KIVUsageError, match="negative"):
            cache.crop(3)

    def test_a_crop_that_a_sliding_layer_refuses_changes_nothing(self, gemma3: TinyModel) -> None:
        cache = filled(gemma3)
        with pytest.raises(RuntimeError, match="activate_past_recording"):
            cache.crop(-3)
        assert cache.lengths() == {60}

    def test_reorder_repeat_and_select(self, tiny: TinyModel) -> None:
        ids = torch.cat([tiny.ids, tiny.ids.flip(1), tiny.ids.roll(5, 1)])
        kiv, stock = filled(tiny, ids=ids), tiny.stock_cache()
        tiny.stock(ids[:, FIRST], past_key_values=stock)
        rows = torch.tensor([2, 0, 0])
        for cache in (kiv, stock):
            cache.reorder_cache(cast("torch.LongTensor", rows))
            cache.batch_repeat_interleave(2)
            cache.batch_select_indices(torch.tensor([0, 3, 5]))
            cache.batch_select_indices(torch.tensor([True, False, True]))
        ids = ids[rows].repeat_interleave(2, 0)[[0, 3, 5]][[0, 2]]
        expected = tiny.stock(ids[:, REST], past_key_values=stock).logits
        assert (continued(tiny, kiv, ids) - expected).abs().max().item() <= tiny.rounding()

    def test_batch_changes_of_an_empty_cache(self, llama: TinyModel) -> None:
        cache = llama.cache()
        cache.reorder_cache(cast("torch.LongTensor", torch.tensor([0])))
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([1]))
        cache.crop(-1)
        assert cache.get_seq_length() == 0

    @pytest.mark.parametrize("copied", [lambda cache: cache.fork(), copy.deepcopy], ids=["fork", "deepcopy"])
    def test_forks_go_their_own_ways(self, tiny: TinyModel, copied: Callable[..., Any]) -> None:
        cache = filled(tiny)
        twin = copied(cache)
        other = tiny.ids.flip(1)
        with_other = tiny.kiv(other[:, REST], past_key_values=twin).logits
        assert cache.lengths() == {60}
        logits = continued(tiny, cache)
        for got, tail in ((logits, tiny.ids), (with_other, other)):
            ids = torch.cat([tiny.ids[:, FIRST], tail[:, REST]], 1)
            expected = feed(tiny.stock, ids, tiny.stock_cache(), [60, 36])[:, REST]
            assert (got - expected).abs().max().item() <= tiny.rounding()

    def test_reset_and_use_again_for_another_batch_and_model(self, llama: TinyModel) -> None:
        cache = filled(llama)
        cache.reset()
        assert cache.memory() == (0, 0, 0)
        llama.stock.set_attn_implementation("kiv")
        ids = torch.cat([llama.ids, llama.ids.flip(1)])
        logits = llama.stock(ids, past_key_values=cache).logits
        expected = llama.kiv(ids, past_key_values=llama.stock_cache()).logits
        assert (logits - expected).abs().max().item() <= 4 * llama.rounding()

    def test_close(self, llama: TinyModel) -> None:
        cache = filled(llama)
        twin = cache.fork()
        cache.close()
        cache.close()
        with pytest.raises(KIVUsageError, match="closed"):
            continued(llama, cache)
        continued(llama, twin)  # its pool stays open until the last one closes
        twin.close()
        with pytest.raises(KIVUsageError):
            twin.pool.layer_store()


class TestReports:
    def test_tokens_memory_and_reports(self, gemma3: TinyModel) -> None:
        cache = filled(gemma3, FULL_BUDGET)
        assert sum(cache.tokens()) == 60
        assert cache.tokens() == cache.tokens(2)
        assert cache.memory() == cache.pool.memory()
        assert cache.memory().ram > 0
        assert sorted(cache.reports()) == [1, 2]
        with pytest.raises(KIVUsageError, match=r"\[1, 2\]"):
            cache.tokens(0)

    def test_before_the_first_token(self, llama: TinyModel) -> None:
        cache = llama.cache()
        assert cache.reports() == {}
        assert sum(cache.tokens()) == 0


class TestHybridLayers:
    """Linear and full attention in one layer."""

    @pytest.fixture
    def models(self) -> tuple[Any, Any, torch.Tensor]:
        stock = falcon_h1()
        kiv = copy.deepcopy(stock)
        kiv.set_attn_implementation("kiv")
        return kiv, stock, torch.randint(2, 60, (2, 70))

    def test_logits_beams_and_forks(self, models: tuple[Any, Any, torch.Tensor]) -> None:
        kiv, stock, ids = models
        cache, plain = KIVCache(kiv.config, EXACT), DynamicCache(config=stock.config)
        assert all(type(layer) is KIVHybridLayer for layer in cache.layers)
        lengths = [40] + [1] * 10
        expected = feed(stock, ids[:, :50], plain, lengths)
        got = feed(kiv, ids[:, :50], cache, lengths)
        bound = 1e-10 * expected.abs().max().item()
        assert (got - expected).abs().max().item() <= bound
        twin = cache.fork()
        rows = torch.tensor([1, 1])
        cache.reorder_cache(cast("torch.LongTensor", rows))
        plain.reorder_cache(cast("torch.LongTensor", rows))
        expected = feed(stock, ids[:, 50:], plain, [1] * 20)
        assert (feed(kiv, ids[:, 50:], cache, [1] * 20) - expected).abs().max().item() <= bound
        assert cache.tokens().cold_ram > 30
        assert twin.get_seq_length() == 50
        assert feed(kiv, ids[:, 50:], twin, [1] * 20).isfinite().all()

    def test_generate(self, models: tuple[Any, Any, torch.Tensor]) -> None:
        kiv, stock, ids = models
        settings = {"max_new_tokens": 8, "do_sample": False, "num_beams": 2}
        expected = stock.generate(ids, past_key_values=DynamicCache(config=stock.config), **settings)
        assert torch.equal(kiv.generate(ids, past_key_values=KIVCache(kiv.config, EXACT), **settings), expected)

    def test_batch_changes_that_transformers_does_by_halves(self, models: tuple[Any, Any, torch.Tensor]) -> None:
        kiv, _, ids = models
        cache = KIVCache(kiv.config, EXACT)
        kiv(ids, past_key_values=cache)
        for change in (lambda: cache.batch_repeat_interleave(2), lambda: cache.batch_select_indices(torch.tensor([0]))):
            with pytest.raises(KIVUnsupportedError, match="keeps its batch"):
                change()
        cache.reset()
        assert cache.get_seq_length() == 0


class TestChoices:
    def test_public_names(self) -> None:
        assert __all__ == ["KIVCache", "KIVConfig", "KIVError", "rope_for_length", "use_kiv"]

    def test_implementations(self, llama: TinyModel) -> None:
        assert resolve_impl("reference") is ReferencePool
        assert resolve_impl(DEFAULT_IMPL) is type(llama.cache().pool)
        made = []

        def factory(config: KIVConfig) -> ReferencePool:
            made.append(config)
            return ReferencePool(config)

        assert filled(llama, FULL_BUDGET).pool.config == FULL_BUDGET
        cache = llama.cache(EXACT, impl=factory)
        assert made == [EXACT] == [cache.pool.config]
        assert KIVCache(llama.config).pool.config == KIVConfig()

    @pytest.mark.parametrize("impl", ["quick", "", 3, None])
    def test_an_unknown_implementation(self, llama: TinyModel, impl: int | str | None) -> None:
        with pytest.raises(KIVUsageError, match="'reference', 'fast', 'compare'"):
            llama.cache(impl=impl)

    def test_operations(self, llama: TinyModel) -> None:
        for impl in ("fast", "compare"):
            pool: Any = llama.cache(EXACT, impl=impl, ops="torch").pool
            assert pool.operations == "torch"
        for impl in ("reference", ReferencePool):
            assert llama.cache(EXACT, impl=impl, ops="auto").pool.config == EXACT
            with pytest.raises(KIVUsageError, match="impl='fast' alone"):
                llama.cache(EXACT, impl=impl, ops="torch")
        with pytest.raises(KIVUsageError, match="'fortran'"):
            llama.cache(EXACT, ops="fortran")

    def test_an_implementation_that_is_not_there(self, llama: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(resolve_impl.__globals__["IMPLEMENTATIONS"], "fast", ("kiv_reference", "FastPool"))
        with pytest.raises(KIVUnsupportedError, match=r"kiv_reference\.FastPool"):
            llama.cache(impl="fast")
        monkeypatch.setitem(resolve_impl.__globals__["IMPLEMENTATIONS"], "fast", ("kiv_nowhere", "FastPool"))
        with pytest.raises(KIVUnsupportedError, match="kiv_nowhere"):
            llama.cache(impl="fast")

    def test_a_model_in_place_of_its_configuration(self, llama: TinyModel) -> None:
        with pytest.raises(KIVUsageError, match=r"model\.config"):
            KIVCache(llama.kiv)
