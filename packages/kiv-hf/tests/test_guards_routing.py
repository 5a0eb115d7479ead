"""Attention, masks and tensors that are not those the cache knows of: an error, never a number (SPEC 10.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hf_interfaces import attention_gets, registered
from hf_models import EXACT, TinyModel, feed
from kiv_hf import KIVCache
from kiv_reference.errors import KIVUnsupportedError, KIVUsageError
from transformers import AttentionInterface
from transformers.masking_utils import sdpa_mask

if TYPE_CHECKING:
    from collections.abc import Callable

FIX = r'set_attn_implementation\("kiv"\)'


class TestAnotherAttention:
    def test_a_model_that_never_used_kiv(self, tiny: TinyModel) -> None:
        cache = KIVCache(tiny.stock.config, EXACT)
        with pytest.raises(KIVUsageError, match=FIX):
            tiny.stock(tiny.ids, past_key_values=cache)
        assert cache.lengths() <= {0}

    def test_a_switch_half_way(self, llama: TinyModel) -> None:
        cache = llama.cache()
        llama.kiv(llama.ids[:, :40], past_key_values=cache)
        llama.kiv.set_attn_implementation("sdpa")
        with pytest.raises(KIVUsageError, match=rf'got attn_implementation="sdpa".*{FIX}'):
            llama.kiv(llama.ids[:, 40:], past_key_values=cache)
        # Nothing had changed, so the cache goes on when the mistake is mended.
        llama.kiv.set_attn_implementation("kiv")
        logits = llama.kiv(llama.ids[:, 40:], past_key_values=cache).logits
        expected = feed(llama.stock, llama.ids, llama.stock_cache(), [40, 56])[:, 40:]
        assert (logits - expected).abs().max().item() <= llama.rounding()

    def test_a_switch_after_a_crop_to_the_same_length(self, llama: TinyModel) -> None:
        cache = llama.cache()
        feed(llama.kiv, llama.ids[:, :40], cache, [39, 1])
        cache.crop(-1)
        llama.kiv.set_attn_implementation("sdpa")
        with pytest.raises(KIVUsageError, match=FIX):
            llama.kiv(llama.ids[:, 39:40], past_key_values=cache)

    def test_a_configuration_that_lies_about_the_masks(self, llama: TinyModel) -> None:
        """The configuration says "kiv", but the masks come from another function."""
        with registered(mask=sdpa_mask), pytest.raises(KIVUsageError, match=FIX):
            llama.kiv(llama.ids, past_key_values=llama.cache())

    def test_a_model_that_routes_masks_but_not_attention(self, llama: TinyModel) -> None:
        """As if the attention were the model's own code: the second layer's update finds the first one unconsumed."""
        with registered(attention=AttentionInterface()["sdpa"]):
            cache = llama.cache()
            with pytest.raises(KIVUsageError, match=FIX):
                llama.kiv(llama.ids, past_key_values=cache)
        with pytest.raises(KIVUsageError, match=r"cache\.reset"):
            llama.kiv(llama.ids, past_key_values=cache)

    def test_placeholders_give_nan_to_any_other_attention(self, llama: TinyModel) -> None:
        cache = llama.cache()
        llama.kiv(llama.ids, past_key_values=cache)
        layer = cache.kiv_layers()[0]
        heads, width = llama.config.num_key_value_heads, llama.config.head_dim
        total = cache.get_mask_sizes(3, 0)[0]
        cache.handshake.mask_answered(None)
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
    def test_is_refused_by_name(self, llama: TinyModel, change: Callable[..., Any], started: bool) -> None:
        cache = llama.cache()
        if started:
            llama.kiv(llama.ids[:, :50], past_key_values=cache)
        with attention_gets(change), pytest.raises(KIVUnsupportedError, match="LlamaAttention"):
            llama.kiv(llama.ids[:, 50:], past_key_values=cache)

    def test_copies_for_a_layer_that_shares_them(self, llama: TinyModel) -> None:
        """The second attention call over one update gets copies, as a move between devices makes."""
        cache = llama.cache()
        llama.kiv(llama.ids[:, :50], past_key_values=cache)
        kiv = AttentionInterface()["kiv"]

        def twice(
            module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
        ) -> Any:
            kiv(module, query, key, value, mask, **kwargs)
            return kiv(module, query, key.clone(), value.clone(), mask, **kwargs)

        with registered(attention=twice), pytest.raises(KIVUnsupportedError, match="LlamaAttention"):
            llama.kiv(llama.ids[:, 50:], past_key_values=cache)

    def test_tensors_of_an_earlier_update(self, llama: TinyModel) -> None:
        cache, kept = llama.cache(), []
        with attention_gets(lambda k, v: kept.append((k, v)) or (k, v)):
            llama.kiv(llama.ids[:, :50], past_key_values=cache)
            old = kept[0]
        with attention_gets(lambda k, v: old), pytest.raises(KIVUnsupportedError, match="LlamaAttention"):
            llama.kiv(llama.ids[:, 50:], past_key_values=cache)


class TestSharedTensors:
    def test_a_second_call_attends_and_does_not_append(self, llama: TinyModel) -> None:
        cache = llama.cache()
        kiv = AttentionInterface()["kiv"]

        def twice(
            module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
        ) -> Any:
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
