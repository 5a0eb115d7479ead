"""Masks, arguments and modes that a KIV layer cannot honour: an error that names the fix (SPEC 10.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hf_interfaces import attention_adds, registered
from kiv_reference.errors import KIVShapeError, KIVUnsupportedError, KIVUsageError
from transformers import AttentionInterface

if TYPE_CHECKING:
    from collections.abc import Callable

    from hf_models import TinyModel


class TestMasks:
    def test_a_4d_mask(self, llama: TinyModel) -> None:
        mask = torch.ones(1, 1, 96, 96, dtype=torch.bool).tril()
        with pytest.raises(KIVUnsupportedError, match="2-D attention_mask"):
            llama.kiv(llama.ids, attention_mask=mask, past_key_values=llama.cache())

    def test_masks_made_by_the_caller(self, gemma3: TinyModel) -> None:
        masks = {"full_attention": None, "sliding_attention": None}
        with pytest.raises(KIVUsageError, match="made for this very call"):
            gemma3.kiv(gemma3.ids, attention_mask=masks, past_key_values=gemma3.cache())

    def test_bidirectional_attention(self, llama: TinyModel) -> None:
        llama.kiv.config.is_causal = False
        with pytest.raises((KIVUsageError, KIVUnsupportedError)):
            llama.kiv(llama.ids, past_key_values=llama.cache())

    def test_a_mask_with_an_overlay(self, gemma3: TinyModel) -> None:
        gemma3.kiv.config.use_bidirectional_attention = True
        with pytest.raises(KIVUnsupportedError, match="plain causal mask"):
            gemma3.kiv(gemma3.ids, past_key_values=gemma3.cache())

    @pytest.mark.parametrize("width", [46, 95, 97])
    def test_a_mask_of_the_wrong_width(self, llama: TinyModel, width: int) -> None:
        cache = llama.cache()
        llama.kiv(llama.ids[:, :50], past_key_values=cache)
        mask = torch.ones(1, width, dtype=torch.long)
        with pytest.raises(KIVShapeError, match="mask of the whole sequence"):
            llama.kiv(llama.ids[:, 50:], attention_mask=mask, past_key_values=cache)

    @pytest.mark.parametrize("second", [None, "other"])
    def test_a_mask_that_changes_its_mind(self, llama: TinyModel, second: str | None) -> None:
        cache = llama.cache()
        mask = torch.ones(1, 96, dtype=torch.long)
        mask[0, :5] = 0
        llama.kiv(llama.ids[:, :50], attention_mask=mask[:, :50], past_key_values=cache)
        later = None if second is None else mask.roll(1, dims=1)
        with pytest.raises(KIVUsageError, match="earlier tokens as padding"):
            llama.kiv(llama.ids[:, 50:], attention_mask=later, past_key_values=cache)

    def test_tokens_that_become_padding_afterwards(self, llama: TinyModel) -> None:
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
    def test_a_model_that_changes_the_mask(self, llama: TinyModel, change: Callable[..., Any]) -> None:
        kiv = AttentionInterface()["kiv"]
        mask = torch.ones(1, 96, dtype=torch.long)
        mask[0, :5] = 0

        def changed(
            module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
        ) -> Any:
            return kiv(module, query, key, value, change(mask), **kwargs)

        with registered(attention=changed), pytest.raises((KIVUsageError, KIVUnsupportedError), match="mask"):
            llama.kiv(llama.ids, attention_mask=mask, past_key_values=llama.cache())


class TestAttentionArguments:
    @pytest.mark.parametrize("name", ["position_bias", "indices", "block_indices"])
    def test_what_a_store_cannot_honour(self, llama: TinyModel, name: str) -> None:
        with attention_adds(**{name: torch.zeros(1, 1, 96, 96)}), pytest.raises(KIVUnsupportedError, match=name):
            llama.kiv(llama.ids, past_key_values=llama.cache())

    def test_is_causal_false(self, llama: TinyModel) -> None:
        with attention_adds(is_causal=False), pytest.raises(KIVUnsupportedError, match="causal"):
            llama.kiv(llama.ids, past_key_values=llama.cache())

    def test_fewer_queries_than_new_tokens(self, llama: TinyModel) -> None:
        kiv = AttentionInterface()["kiv"]

        def last(
            module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
        ) -> Any:
            return kiv(module, query[:, :, -1:], key, value, mask, **kwargs)

        with registered(attention=last), pytest.raises(KIVUnsupportedError, match="one query for each new token"):
            llama.kiv(llama.ids, past_key_values=llama.cache())

    @pytest.mark.parametrize("with_cache", [True, False])
    def test_continuous_batching(self, llama: TinyModel, with_cache: bool) -> None:
        cache = llama.cache() if with_cache else None
        with attention_adds(cache=object()), pytest.raises(KIVUnsupportedError, match="continuous batching"):
            llama.kiv(llama.ids, past_key_values=cache, use_cache=with_cache)

    @pytest.mark.parametrize("dropout", [0.0, 0.1])
    def test_training_mode(self, llama: TinyModel, dropout: float) -> None:
        llama.kiv.train()
        for layer in llama.kiv.model.layers:
            layer.self_attn.attention_dropout = dropout
        with pytest.raises(KIVUnsupportedError, match=r"model\.eval"):
            llama.kiv(llama.ids, past_key_values=llama.cache())

    @pytest.mark.gradients
    def test_gradients(self, llama: TinyModel) -> None:
        cache = llama.cache()
        with pytest.raises(KIVUnsupportedError, match="no_grad"):
            llama.kiv(llama.ids, past_key_values=cache)
        assert cache.get_seq_length() == 0

    @pytest.mark.gradients
    def test_gradients_of_the_query_alone(self, llama: TinyModel) -> None:
        llama.kiv.requires_grad_(False)
        llama.kiv.model.layers[0].self_attn.q_proj.requires_grad_(True)
        with pytest.raises(KIVUnsupportedError, match="a query that requires"):
            llama.kiv(llama.ids, past_key_values=llama.cache())
