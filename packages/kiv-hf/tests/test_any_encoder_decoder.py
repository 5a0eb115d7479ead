"""A KIV cache as the self-attention half of an `EncoderDecoderCache`, in models whose own code computes attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hf_models import EXACT, FEEDS, STARVED, TEXT_TOKENS, VOCABULARY
from kiv_hf import KIVCache, use_kiv
from transformers import CONFIG_MAPPING, BlipTextConfig, DynamicCache, EncoderDecoderCache, MvpForConditionalGeneration
from transformers import SpeechT5ForSpeechToText as SpeechT5
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

IDS = torch.randint(2, VOCABULARY, (1, TEXT_TOKENS), generator=torch.Generator().manual_seed(7))
STATES = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(8)).double()
CLOSE = 1e-10  # of the largest logit: in float64 right answers agree on any processor
MODELS = {
    "mvp": (MvpForConditionalGeneration, {"d_model": 32, "max_position_embeddings": 128, "init_std": 0.2}),
    "speecht5": (SpeechT5, {"hidden_size": 32, "max_text_positions": 128, "initializer_range": 0.2}),
}
LAYERS = {
    "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48,
    "encoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 48,
}  # fmt: skip


def build(name: str) -> Any:
    model_class, sizes = MODELS[name]
    torch.manual_seed(5)
    config: Any = CONFIG_MAPPING[name]
    return model_class(config(vocab_size=VOCABULARY, **LAYERS, **sizes)).eval().double()


def decode(model: Any, cache: Any, lengths: list[int]) -> torch.Tensor:
    """Return the logits [1, TEXT_TOKENS, VOCABULARY] of a decoder that attends across to `STATES`."""
    both = EncoderDecoderCache(cache, DynamicCache())
    with torch.no_grad():
        answers = [
            model(encoder_outputs=BaseModelOutput(STATES), decoder_input_ids=ids, past_key_values=both).logits
            for ids in IDS.split(lengths, dim=1)
        ]
    return torch.cat(answers, dim=1)


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_those_of_the_stock_cache(name: str) -> None:
    model = build(name)
    expected = [decode(model, DynamicCache(config=model.config), lengths) for lengths in FEEDS.values()]
    bound = CLOSE * expected[0].abs().max().item()
    use_kiv(model)
    for lengths, right in zip(FEEDS.values(), expected, strict=True):
        cache = KIVCache(model.config, EXACT)
        assert (decode(model, cache, lengths) - right).abs().max().item() <= bound
        assert cache.tokens().cold_ram > TEXT_TOKENS // 2
    starved = decode(model, KIVCache(model.config, STARVED), FEEDS["chunks"])
    assert (starved - expected[0]).abs().max().item() > 10 * bound


def test_an_encoder_keeps_its_own_attention() -> None:
    """Positions have a bias in SpeechT5's encoder, and none in its decoder."""
    model: Any = build("speecht5")
    sound = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(9)).double()
    encoder = model.speecht5.encoder.wrapped_encoder
    with torch.no_grad():
        expected = encoder(sound).last_hidden_state
        use_kiv(model)
        assert torch.equal(encoder(sound).last_hidden_state, expected)


@pytest.mark.parametrize("is_decoder", [True, False])
def test_one_class_for_decoder_and_encoder_of_text(is_decoder: bool) -> None:
    """BLIP's: causal in a decoder, with a cache or without, and in both directions in an encoder."""
    torch.manual_seed(5)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "encoder_hidden_size": 32, "projection_dim": 16}
    layers: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.2}
    config = BlipTextConfig(vocab_size=VOCABULARY, max_position_embeddings=128, **sizes, **layers)
    model = BlipTextLMHeadModel(config).eval().double()
    arguments = {"input_ids": IDS, "encoder_hidden_states": STATES, "is_decoder": is_decoder}
    arguments["encoder_attention_mask"] = torch.tensor([[1, 1, 1, 1, 0, 0]])
    with torch.no_grad():
        expected = model(**arguments, use_cache=False).logits
        bound = CLOSE * expected.abs().max().item()
        use_kiv(model)
        assert (model(**arguments, use_cache=False).logits - expected).abs().max().item() <= bound
        if is_decoder:
            both = EncoderDecoderCache(KIVCache(model.config, EXACT), DynamicCache())
            logits = torch.cat(
                [
                    model(**{**arguments, "input_ids": ids}, past_key_values=both, use_cache=True).logits
                    for ids in IDS.split(FEEDS["chunks"], dim=1)
                ],
                dim=1,
            )
            assert (logits - expected).abs().max().item() <= bound
            assert isinstance(both.self_attention_cache, KIVCache)
            assert both.self_attention_cache.tokens().cold_ram > TEXT_TOKENS // 2
