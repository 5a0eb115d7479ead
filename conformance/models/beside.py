"""What some models demand beside the text: always the same random states of an encoder that is not run."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import DynamicCache, EncoderDecoderCache
from transformers.models.udop.modeling_udop import BaseModelOutputWithAttentionMask

TOKENS = 40
"""Length of the text."""

_STATES = 6  # of the encoder: an image or a sound of this many tokens


def is_encoder_decoder(model: Any) -> bool:
    """Say whether the text goes to a decoder that attends across to an encoder's states."""
    return "decoder_input_ids" in inspect.signature(model.forward).parameters and model.config.is_encoder_decoder


def cross_cache(cache: Any) -> EncoderDecoderCache:
    """Return `cache` for self-attention with a stock cache for cross-attention, as an encoder-decoder wants them."""
    return EncoderDecoderCache(cache, DynamicCache())


def beside_text(model: Any, start: int, end: int, rows: int) -> dict[str, Any]:
    """Return the arguments of `forward` that go with the text tokens of positions [start, end)."""
    if is_encoder_decoder(model):
        states = _random(model, rows, _STATES, _width(model))
        # Some read a mask from the encoder's answer, and this class has a place for one.
        return {"encoder_outputs": BaseModelOutputWithAttentionMask(last_hidden_state=states)}
    config = model.config
    if config.model_type == "idefics":
        image = _random(model, rows, 1, _STATES, config.vision_config.embed_dim)
        seen = torch.ones(rows, end - start, 1, dtype=torch.int64)
        return {"image_encoder_embeddings": image, "image_attention_mask": seen}
    if config.model_type == "paligemma":  # what its processor makes: the first piece is the prompt
        return {"token_type_ids": torch.full((rows, end - start), int(start > 0))}
    if config.model_type == "voxtral_realtime":
        each = config.downsample_factor
        sound = _random(model, TOKENS * each, config.audio_config.hidden_size)[start * each : end * each]
        return {"encoder_inputs_embeds": sound.expand(rows, -1, -1)}
    return {}


def _width(model: Any) -> int:
    decoder = model.config.get_text_config(decoder=True)
    return getattr(decoder, "cross_attention_hidden_size", None) or decoder.hidden_size


def _random(model: Any, *shape: int) -> torch.Tensor:
    states = torch.randn(*shape, generator=torch.Generator().manual_seed(11))
    return states.to(next(model.parameters()).dtype)
