"""Models with an encoder: KIV serves the decoder's attention to itself and refuses what is not that (SPEC 10.4)."""

from __future__ import annotations

import pytest
import torch
from hf_models import EXACT
from kiv_hf import KIVCache
from kiv_reference.errors import KIVUnsupportedError, KIVUsageError
from transformers import DynamicCache, EncoderDecoderCache


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
