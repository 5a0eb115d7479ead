"""Models with an encoder: KIV serves the decoder's attention to itself and refuses what is not that (SPEC 10.4)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hf_models import EXACT
from kiv_hf import KIVCache
from kiv_reference.errors import KIVUnsupportedError, KIVUsageError
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    DynamicCache,
    EncoderDecoderCache,
    T5GemmaForConditionalGeneration,
)


class TestEncoderDecoder:
    def model(self) -> T5GemmaForConditionalGeneration:
        from transformers import T5GemmaConfig, T5GemmaForConditionalGeneration, T5GemmaModuleConfig

        sizes: dict[str, Any] = {
            "vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 8,
            "num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 8, "initializer_range": 0.3,
        }  # fmt: skip
        torch.manual_seed(0)
        fields: dict[str, Any] = {name: T5GemmaModuleConfig(**sizes) for name in ("encoder", "decoder")}
        fields |= {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1}
        config = T5GemmaConfig(**fields)
        return T5GemmaForConditionalGeneration(config).eval()

    def test_kiv_for_the_decoder_is_right_and_for_cross_attention_refused(self) -> None:
        model = self.model()
        source, target = torch.randint(2, 50, (1, 20)), torch.randint(2, 50, (1, 20))
        expected = model(input_ids=source, decoder_input_ids=target).logits
        model.set_attn_implementation("kiv")
        config: Any = model.config.decoder
        good = EncoderDecoderCache(KIVCache(config, EXACT), DynamicCache())
        logits = model(input_ids=source, decoder_input_ids=target, past_key_values=good).logits
        # Not in float64: T5Gemma has eager attention alone, whose softmax is in float32 whatever the dtype.
        assert (logits - expected).abs().max().item() < 1e-4 * expected.abs().max().item()
        # As many source as target tokens: the shapes alone would not give it away.
        bad = EncoderDecoderCache(DynamicCache(config=config), KIVCache(config, EXACT))
        with pytest.raises((KIVUsageError, KIVUnsupportedError)):
            model(input_ids=source, decoder_input_ids=target, past_key_values=bad)


SOURCE_TOKENS = 20
BART: dict[str, Any] = {
    "vocab_size": 50, "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "init_std": 0.3, "pad_token_id": 0,
    "bos_token_id": 1, "decoder_start_token_id": 1, "eos_token_id": None, "forced_eos_token_id": None,
}  # fmt: skip


class TestOneCacheForBoth:
    """transformers takes a cache that is not split into two and keeps the encoder's states in it too."""

    @pytest.fixture
    def model(self) -> Any:
        torch.manual_seed(0)
        return BartForConditionalGeneration(BartConfig(**BART)).eval()

    @pytest.fixture
    def source(self) -> torch.Tensor:
        return torch.randint(2, 50, (1, SOURCE_TOKENS), generator=torch.Generator().manual_seed(1))

    # With as many new tokens as the source has, it is the mask that gives it away.
    @pytest.mark.parametrize("tokens", [SOURCE_TOKENS, SOURCE_TOKENS + 1, 1])
    def test_forward(self, model: Any, source: torch.Tensor, tokens: int) -> None:
        model.set_attn_implementation("kiv")
        with pytest.raises((KIVUsageError, KIVUnsupportedError), match="in BartAttention"):
            model(source, decoder_input_ids=source[:, :1].repeat(1, tokens), past_key_values=self.bare(model))

    def test_generate(self, model: Any, source: torch.Tensor) -> None:
        settings = {"max_new_tokens": 24, "do_sample": False}
        expected = model.generate(source, **settings)
        model.set_attn_implementation("kiv")
        split = EncoderDecoderCache(self.bare(model), DynamicCache(config=model.config))
        assert torch.equal(model.generate(source, past_key_values=split, **settings), expected)
        assert isinstance(split.self_attention_cache, KIVCache)
        assert split.self_attention_cache.tokens().cold_ram > 0
        with pytest.raises(KIVUnsupportedError, match="cross-attention"):
            model.generate(source, past_key_values=self.bare(model), **settings)

    def bare(self, model: Any) -> KIVCache:
        return KIVCache(model.config, EXACT)
