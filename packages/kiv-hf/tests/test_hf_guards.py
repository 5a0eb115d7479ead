"""Misuse gives an error that names the fix, never a number (SPEC 10.4)."""

from __future__ import annotations

import threading

import pytest
import torch
from hf_models import EXACT, FULL_BUDGET, PAGES, feed
from kiv_hf import KIVCache, KIVConfig
from kiv_reference.errors import (
    KIVBudgetError,
    KIVNonFiniteError,
    KIVShapeError,
    KIVUnsupportedError,
    KIVUsageError,
)
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, EncoderDecoderCache
from transformers.masking_utils import sdpa_mask

FIX = r'set_attn_implementation\("kiv"\)'


class TestAnotherAttention:
    def test_a_model_that_never_used_kiv(self, tiny):
        cache = KIVCache(tiny.stock.config, EXACT)
        with pytest.raises(KIVUsageError, match=FIX):
            tiny.stock(tiny.ids, past_key_values=cache)
        assert cache.lengths() <= {0}

    def test_a_switch_half_way(self, llama):
        cache = llama.cache()
        llama.kiv(llama.ids[:, :40], past_key_values=cache)
        llama.kiv.set_attn_implementation("sdpa")
        with pytest.raises(KIVUsageError, match=FIX):
            llama.kiv(llama.ids[:, 40:], past_key_values=cache)
        # Nothing had changed, so the cache goes on when the mistake is mended.
        llama.kiv.set_attn_implementation("kiv")
        logits = llama.kiv(llama.ids[:, 40:], past_key_values=cache).logits
        expected = feed(llama.stock, llama.ids, llama.stock_cache(), [40, 56])[:, 40:]
        assert (logits - expected).abs().max().item() <= llama.rounding()

    def test_a_switch_after_a_crop_to_the_same_length(self, llama):
        cache = llama.cache()
        feed(llama.kiv, llama.ids[:, :40], cache, [39, 1])
        cache.crop(-1)
        llama.kiv.set_attn_implementation("sdpa")
        with pytest.raises(KIVUsageError, match=FIX):
            llama.kiv(llama.ids[:, 39:40], past_key_values=cache)

    def test_a_configuration_that_lies_about_the_masks(self, llama):
        """The configuration says "kiv", but the masks come from another function."""
        with registered(mask=sdpa_mask), pytest.raises(KIVUsageError, match=FIX):
            llama.kiv(llama.ids, past_key_values=llama.cache())

    def test_a_model_that_routes_masks_but_not_attention(self, llama):
        """As if the attention were the model's own code: the second layer's update finds the first one unconsumed."""
        with registered(attention=AttentionInterface()["sdpa"]):
            cache = llama.cache()
            with pytest.raises(KIVUsageError, match=FIX):
                llama.kiv(llama.ids, past_key_values=cache)
        with pytest.raises(KIVUsageError, match=r"cache\.reset"):
            llama.kiv(llama.ids, past_key_values=cache)

    def test_placeholders_give_nan_to_any_other_attention(self, llama):
        cache = llama.cache()
        llama.kiv(llama.ids, past_key_values=cache)
        layer = cache.layers[0]
        heads, width = llama.config.num_key_value_heads, llama.config.head_dim
        total = cache.get_mask_sizes(3, 0)[0]
        cache._handshake.mask_answered(None)
        key, value = layer.update(torch.ones(1, heads, 3, width), torch.ones(1, heads, 3, width))
        assert key.shape == value.shape == (1, heads, total, width)
        assert key.isnan().all()
        assert value.isnan().all()
        assert key.untyped_storage().nbytes() == key.element_size()


class TestForeignTensors:
    """A model that changes keys or values between the cache and attention."""

    @pytest.mark.parametrize("change", [
        lambda k, v: (k.clone(), v),
        lambda k, v: (k, v.clone()),
        lambda k, v: (2 * k, v),
        lambda k, v: (v, k),
        lambda k, v: (k[:, :, 1:], v[:, :, 1:]),
    ], ids=["copied keys", "copied values", "doubled keys", "swapped", "cut"])  # fmt: skip
    @pytest.mark.parametrize("started", [False, True])
    def test_is_refused_by_name(self, llama, change, started):
        cache = llama.cache()
        if started:
            llama.kiv(llama.ids[:, :50], past_key_values=cache)
        with attention_gets(change), pytest.raises(KIVUnsupportedError, match="LlamaAttention"):
            llama.kiv(llama.ids[:, 50:], past_key_values=cache)

    def test_copies_for_a_layer_that_shares_them(self, llama):
        """The second attention call over one update gets copies, as a move between devices makes."""
        cache = llama.cache()
        llama.kiv(llama.ids[:, :50], past_key_values=cache)
        kiv = AttentionInterface()["kiv"]

        def twice(module, query, key, value, mask, **kwargs):
            kiv(module, query, key, value, mask, **kwargs)
            return kiv(module, query, key.clone(), value.clone(), mask, **kwargs)

        with registered(attention=twice), pytest.raises(KIVUnsupportedError, match="LlamaAttention"):
            llama.kiv(llama.ids[:, 50:], past_key_values=cache)

    def test_tensors_of_an_earlier_update(self, llama):
        cache, kept = llama.cache(), []
        with attention_gets(lambda k, v: kept.append((k, v)) or (k, v)):
            llama.kiv(llama.ids[:, :50], past_key_values=cache)
            old = kept[0]
        with attention_gets(lambda k, v: old), pytest.raises(KIVUnsupportedError, match="LlamaAttention"):
            llama.kiv(llama.ids[:, 50:], past_key_values=cache)


class TestSharedTensors:
    def test_a_second_call_attends_and_does_not_append(self, llama):
        cache = llama.cache()
        kiv = AttentionInterface()["kiv"]

        def twice(module, query, key, value, mask, **kwargs):
            first, _ = kiv(module, query, key, value, mask, **kwargs)
            other, _ = kiv(module, 2 * query, key, value, mask, **kwargs)
            second, _ = kiv(module, query, key, value, mask, **kwargs)
            assert torch.equal(first, second)
            assert not torch.equal(first, other)
            return second, None

        with registered(attention=twice):
            logits = feed(llama.kiv, llama.ids, cache, [50, 46])
        assert cache.get_seq_length() == llama.ids.shape[1]
        expected = feed(llama.stock, llama.ids, llama.stock_cache(), [50, 46])
        assert (logits - expected).abs().max().item() <= llama.rounding()


class TestMasks:
    def test_a_4d_mask(self, llama):
        mask = torch.ones(1, 1, 96, 96, dtype=torch.bool).tril()
        with pytest.raises(KIVUnsupportedError, match="2-D attention_mask"):
            llama.kiv(llama.ids, attention_mask=mask, past_key_values=llama.cache())

    def test_masks_made_by_the_caller(self, gemma3):
        masks = {"full_attention": None, "sliding_attention": None}
        with pytest.raises(KIVUsageError, match="made for this very call"):
            gemma3.kiv(gemma3.ids, attention_mask=masks, past_key_values=gemma3.cache())

    def test_bidirectional_attention(self, llama):
        llama.kiv.config.is_causal = False
        with pytest.raises((KIVUsageError, KIVUnsupportedError)):
            llama.kiv(llama.ids, past_key_values=llama.cache())

    def test_a_mask_with_an_overlay(self, gemma3):
        gemma3.kiv.config.use_bidirectional_attention = True
        with pytest.raises(KIVUnsupportedError, match="plain causal mask"):
            gemma3.kiv(gemma3.ids, past_key_values=gemma3.cache())

    @pytest.mark.parametrize("width", [46, 95, 97])
    def test_a_mask_of_the_wrong_width(self, llama, width):
        cache = llama.cache()
        llama.kiv(llama.ids[:, :50], past_key_values=cache)
        mask = torch.ones(1, width, dtype=torch.long)
        with pytest.raises(KIVShapeError, match="mask of the whole sequence"):
            llama.kiv(llama.ids[:, 50:], attention_mask=mask, past_key_values=cache)

    @pytest.mark.parametrize("second", [None, "other"])
    def test_a_mask_that_changes_its_mind(self, llama, second):
        cache = llama.cache()
        mask = torch.ones(1, 96, dtype=torch.long)
        mask[0, :5] = 0
        llama.kiv(llama.ids[:, :50], attention_mask=mask[:, :50], past_key_values=cache)
        later = None if second is None else mask.roll(1, dims=1)
        with pytest.raises(KIVUsageError, match="earlier tokens as padding"):
            llama.kiv(llama.ids[:, 50:], attention_mask=later, past_key_values=cache)

    def test_tokens_that_become_padding_afterwards(self, llama):
        cache = llama.cache()
        llama.kiv(llama.ids[:, :50], past_key_values=cache)
        mask = torch.ones(1, 96, dtype=torch.long)
        mask[0, :5] = 0
        with pytest.raises(KIVUsageError, match="earlier tokens as padding"):
            llama.kiv(llama.ids[:, 50:], attention_mask=mask, past_key_values=cache)

    @pytest.mark.parametrize("change", [
        lambda mask: None,
        lambda mask: mask[:, -50:],
        lambda mask: mask[:, None, None, :],
    ], ids=["dropped", "cut", "spelled out"])  # fmt: skip
    def test_a_model_that_changes_the_mask(self, llama, change):
        kiv = AttentionInterface()["kiv"]
        mask = torch.ones(1, 96, dtype=torch.long)
        mask[0, :5] = 0

        def changed(module, query, key, value, mask, **kwargs):
            return kiv(module, query, key, value, change(mask), **kwargs)

        with registered(attention=changed), pytest.raises((KIVUsageError, KIVUnsupportedError), match="mask"):
            llama.kiv(llama.ids, attention_mask=mask, past_key_values=llama.cache())


class TestAttentionArguments:
    @pytest.mark.parametrize("name", ["position_bias", "indices", "block_indices"])
    def test_what_a_store_cannot_honour(self, llama, name):
        with attention_adds(**{name: torch.zeros(1, 1, 96, 96)}), pytest.raises(KIVUnsupportedError, match=name):
            llama.kiv(llama.ids, past_key_values=llama.cache())

    def test_is_causal_false(self, llama):
        with attention_adds(is_causal=False), pytest.raises(KIVUnsupportedError, match="causal"):
            llama.kiv(llama.ids, past_key_values=llama.cache())

    def test_fewer_queries_than_new_tokens(self, llama):
        kiv = AttentionInterface()["kiv"]

        def last(module, query, key, value, mask, **kwargs):
            return kiv(module, query[:, :, -1:], key, value, mask, **kwargs)

        with registered(attention=last), pytest.raises(KIVUnsupportedError, match="one query for each new token"):
            llama.kiv(llama.ids, past_key_values=llama.cache())

    @pytest.mark.parametrize("with_cache", [True, False])
    def test_continuous_batching(self, llama, with_cache):
        cache = llama.cache() if with_cache else None
        with attention_adds(cache=object()), pytest.raises(KIVUnsupportedError, match="continuous batching"):
            llama.kiv(llama.ids, past_key_values=cache, use_cache=with_cache)

    @pytest.mark.parametrize("dropout", [0.0, 0.1])
    def test_training_mode(self, llama, dropout):
        llama.kiv.train()
        for layer in llama.kiv.model.layers:
            layer.self_attn.attention_dropout = dropout
        with pytest.raises(KIVUnsupportedError, match=r"model\.eval"):
            llama.kiv(llama.ids, past_key_values=llama.cache())

    @pytest.mark.gradients
    def test_gradients(self, llama):
        cache = llama.cache()
        with pytest.raises(KIVUnsupportedError, match="no_grad"):
            llama.kiv(llama.ids, past_key_values=cache)
        assert cache.get_seq_length() == 0

    @pytest.mark.gradients
    def test_gradients_of_the_query_alone(self, llama):
        llama.kiv.requires_grad_(False)
        llama.kiv.model.layers[0].self_attn.q_proj.requires_grad_(True)
        with pytest.raises(KIVUnsupportedError, match="a query that requires"):
            llama.kiv(llama.ids, past_key_values=llama.cache())


class TestBrokenForward:
    """A forward pass that breaks off leaves layers of different lengths: refused until the cache is reset."""

    def interrupt(self, model, index, part):
        def stop(*_):
            raise KeyboardInterrupt

        return getattr(model.model.layers[index], part).register_forward_pre_hook(stop)

    @pytest.mark.parametrize("index", [0, 1])
    @pytest.mark.parametrize("part", ["self_attn", "mlp"])
    def test_is_noticed(self, tiny, index, part):
        cache = tiny.cache()
        tiny.kiv(tiny.ids[:, :50], past_key_values=cache)
        hook = self.interrupt(tiny.kiv, index, part)
        with pytest.raises(KeyboardInterrupt):
            tiny.kiv(tiny.ids[:, 50:], past_key_values=cache)
        hook.remove()
        settled = (index, part) == (0, "self_attn") or ((index, part) == (1, "mlp") and len(cache.layers) == 2)
        if settled:  # before the first layer took the tokens, or after the last one did: the layers agree
            assert len(cache.lengths()) == 1
            return
        with pytest.raises(KIVUsageError, match=r"cache\.reset"):
            tiny.kiv(tiny.ids[:, 50:], past_key_values=cache)
        cache.reset()
        logits = tiny.kiv(tiny.ids, past_key_values=cache).logits
        expected = tiny.stock(tiny.ids, past_key_values=tiny.stock_cache()).logits
        assert (logits - expected).abs().max().item() <= tiny.rounding()

    def stage(self, tiny):
        """A cache whose first KIV layer waits for an attention call that never comes."""
        cache = tiny.cache()
        tiny.kiv(tiny.ids[:, :50], past_key_values=cache)

        def stop(*_, **__):
            raise KeyboardInterrupt

        with registered(attention=stop), pytest.raises(KeyboardInterrupt):
            tiny.kiv(tiny.ids[:, 50:], past_key_values=cache)
        return cache

    @pytest.mark.parametrize("use", [
        lambda cache: cache.crop(-1),
        lambda cache: cache.crop(0),
        lambda cache: cache.reorder_cache(torch.tensor([0])),
        lambda cache: cache.batch_repeat_interleave(2),
        lambda cache: cache.batch_select_indices(torch.tensor([0])),
        lambda cache: cache.fork(),
        lambda cache: cache.layers[0].crop(-1),
        lambda cache: cache.layers[1].reorder_cache(torch.tensor([0])),
    ])  # fmt: skip
    def test_nothing_but_reset_and_close(self, llama, use):
        cache = self.stage(llama)
        assert cache.get_seq_length() == 96
        with pytest.raises(KIVUsageError, match=r"cache\.reset"):
            use(cache)
        cache.reset()
        assert cache.get_seq_length() == 0
        cache.close()

    def test_another_cache_of_the_thread_is_not_concerned(self, llama):
        self.stage(llama)
        logits = llama.kiv(llama.ids, past_key_values=llama.cache()).logits
        plain = llama.kiv(llama.ids, past_key_values=llama.stock_cache()).logits
        assert (logits - plain).abs().max().item() <= llama.rounding()

    def test_keys_that_are_not_finite(self, llama):
        llama.kiv.model.layers[1].self_attn.k_proj.weight.data[0, 0] = float("nan")
        cache = llama.cache()
        with pytest.raises(KIVNonFiniteError):
            llama.kiv(llama.ids, past_key_values=cache)
        with pytest.raises(KIVUsageError, match=r"cache\.reset"):
            llama.kiv(llama.ids, past_key_values=cache)

    def test_a_budget_that_is_too_small(self, llama):
        config = KIVConfig(retrieve_tokens=None, ram_bytes=1000, **PAGES)
        with pytest.raises(KIVBudgetError):
            llama.kiv(llama.ids, past_key_values=llama.cache(config))


class TestTwoOfThem:
    def test_a_cache_of_another_model(self, llama):
        cache = llama.cache()
        llama.kiv(llama.ids[:, :50], past_key_values=cache)
        llama.stock.set_attn_implementation("kiv")
        with pytest.raises(KIVUsageError, match="the model that filled it"):
            llama.stock(llama.ids[:, 50:], past_key_values=cache)

    def test_two_caches_in_turn(self, tiny):
        caches = [tiny.cache(), tiny.cache(FULL_BUDGET), tiny.stock_cache()]
        ids = [tiny.ids, tiny.ids.flip(1), tiny.ids.roll(3, 1)]
        got = [[], [], []]
        for start in range(0, 96, 24):
            for i in range(3):
                got[i].append(tiny.kiv(ids[i][:, start : start + 24], past_key_values=caches[i]).logits)
        for i in range(3):
            expected = feed(tiny.stock, ids[i], tiny.stock_cache(), [24] * 4)
            assert (torch.cat(got[i], 1) - expected).abs().max().item() <= tiny.rounding()

    def test_two_models_in_turn(self, llama, gemma3):
        models = [llama, gemma3]
        caches = [model.cache() for model in models]
        got = [[], []]
        for start in range(0, 96, 24):
            for i, model in enumerate(models):
                got[i].append(model.kiv(model.ids[:, start : start + 24], past_key_values=caches[i]).logits)
        for i, model in enumerate(models):
            expected = feed(model.stock, model.ids, model.stock_cache(), [24] * 4)
            assert (torch.cat(got[i], 1) - expected).abs().max().item() <= model.rounding()

    def test_threads(self, llama, gemma3):
        """Two models and four caches, each in a thread of its own."""
        jobs = [llama, gemma3, llama, gemma3]
        got: list[torch.Tensor | None] = [None] * len(jobs)

        def run(i):
            with torch.no_grad():
                got[i] = feed(jobs[i].kiv, jobs[i].ids, jobs[i].cache(), [1] * 24 + [72])

        threads = [threading.Thread(target=run, args=(i,)) for i in range(len(jobs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for logits, model in zip(got, jobs, strict=True):
            assert logits is not None
            expected = feed(model.stock, model.ids, model.stock_cache(), [1] * 24 + [72])
            assert (logits - expected).abs().max().item() <= model.rounding()

    @pytest.mark.parametrize("where", ["layers.0", "layers.0.mlp", "layers.1"])
    @pytest.mark.parametrize("threaded", [True, False])
    def test_one_cache_in_two_forward_passes_at_once(self, llama, where, threaded):
        """A second forward pass comes in after the masks of the first one, or between two of its layers."""
        cache, errors = llama.cache(), []
        llama.kiv(llama.ids[:, :50], past_key_values=cache)

        def run():
            try:
                with torch.no_grad():
                    llama.kiv(llama.ids[:, 50:60], past_key_values=cache)
            except KIVUsageError as error:
                errors.append(error)

        def intrude(*_):
            hook.remove()
            thread = threading.Thread(target=run)
            thread.start() if threaded else run()
            if threaded:
                thread.join()

        hook = llama.kiv.model.get_submodule(where).register_forward_pre_hook(intrude)
        try:
            llama.kiv(llama.ids[:, 50:60], past_key_values=cache)
        except KIVUsageError as error:
            errors.append(error)
        assert errors


class TestEncoderDecoder:
    def model(self):
        from transformers import T5GemmaConfig, T5GemmaForConditionalGeneration, T5GemmaModuleConfig

        sizes = {
            "vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 8,
            "num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 8, "initializer_range": 0.3,
        }  # fmt: skip
        torch.manual_seed(0)
        parts = {name: T5GemmaModuleConfig(**sizes) for name in ("encoder", "decoder")}
        config = T5GemmaConfig(**parts, vocab_size=50, pad_token_id=0, bos_token_id=1)
        return T5GemmaForConditionalGeneration(config).eval()

    def test_kiv_for_the_decoder_is_right_and_for_cross_attention_refused(self):
        model = self.model()
        source, target = torch.randint(2, 50, (1, 20)), torch.randint(2, 50, (1, 20))
        expected = model(input_ids=source, decoder_input_ids=target).logits
        model.set_attn_implementation("kiv")
        config = model.config.decoder
        good = EncoderDecoderCache(KIVCache(config, EXACT), DynamicCache())
        logits = model(input_ids=source, decoder_input_ids=target, past_key_values=good).logits
        assert (logits - expected).abs().max().item() < 1e-4 * expected.abs().max().item()
        # As many source as target tokens: the shapes alone would not give it away.
        bad = EncoderDecoderCache(DynamicCache(config=config), KIVCache(config, EXACT))
        with pytest.raises((KIVUsageError, KIVUnsupportedError)):
            model(input_ids=source, decoder_input_ids=target, past_key_values=bad)


class registered:
    """While it lasts, other functions go by the name "kiv"."""

    def __init__(self, attention=None, mask=None):
        self.wanted = [(AttentionInterface, attention), (AttentionMaskInterface, mask)]

    def __enter__(self):
        self.kept = [(interface, interface()["kiv"]) for interface, _ in self.wanted]
        for interface, function in self.wanted:
            if function is not None:
                interface.register("kiv", function)

    def __exit__(self, *_):
        for interface, function in self.kept:
            interface.register("kiv", function)


def attention_gets(change):
    """The attention "kiv" gets `change(key, value)`, as from a model that adapts them."""
    kiv = AttentionInterface()["kiv"]

    def changed(module, query, key, value, mask, **kwargs):
        return kiv(module, query, *change(key, value), mask, **kwargs)

    return registered(attention=changed)


def attention_adds(**added):
    """The attention "kiv" gets more arguments, as from a model that passes them."""
    kiv = AttentionInterface()["kiv"]

    def more(module, query, key, value, mask, **kwargs):
        return kiv(module, query, key, value, mask, **{**kwargs, **added})

    return registered(attention=more)
