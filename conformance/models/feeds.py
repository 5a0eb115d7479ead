"""Feeding a text to a model in pieces, and the caches and inputs that odd models want."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

from .beside import TOKENS, beside_text, cross_cache, is_encoder_decoder

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_WORD, LAST_WORD = 3, 90  # between the special tokens of the tiny configurations
PADDING = (0, 13)  # of the sequences of the padded batch

PIECES = {
    "one shot": [TOKENS],
    "chunks": [17, 1, 2, 13, 7],
    "token by token": [1] * TOKENS,
}
"""Ways to feed the text: lengths of the pieces."""

# Classes whose forward hands a cache to the decoder by way of **kwargs.
_BY_KEYWORD = ("EvollaForProteinText2Text", "VibeVoiceForConditionalGeneration")


def text(model: Any, rows: int = 1) -> torch.Tensor:
    """Return token ids [rows, TOKENS]; models of several codebooks get a row, or a last dimension, for each."""
    decoder = model.config.get_text_config(decoder=True)
    if model.config.model_type.startswith("musicgen"):
        rows *= decoder.num_codebooks
    generator = torch.Generator().manual_seed(7)
    shape = (rows, TOKENS)
    if model.config.model_type == "kyutai_speech_to_text":  # the text, and the sound's tokens beside it
        shape += (decoder.num_codebooks + 1,)
    if model.config.model_type == "dia":
        shape += (decoder.num_channels,)
    return torch.randint(FIRST_WORD, LAST_WORD, shape, generator=generator)


def cache_argument(model_class: type) -> str | None:
    """Return the name of the argument of `forward` that takes a cache, None if there is none."""
    if model_class.__name__ in _BY_KEYWORD:
        return "past_key_values"
    parameters = inspect.signature(model_class.forward).parameters
    return next((name for name in ("past_key_values", "cache_params") if name in parameters), None)


def stock_cache(model: Any) -> DynamicCache:
    """Return the cache that `generate` would make for the model."""
    return DynamicCache(config=model.config)


def feed(
    model: Any,
    ids: torch.Tensor,
    cache: Any,
    lengths: list[int],
    mask: torch.Tensor | None = None,
    reopened: Callable[[Any], Any] | None = None,
) -> torch.Tensor:
    """Return the logits [B, T, vocabulary] of `ids`, fed in pieces of `lengths`.

    Parameters
    ----------
    mask : int64 [B, T], optional
        0 where a token is padding.
    reopened : callable, optional
        Gives the cache to go on with before each piece but the first, in place of the one until then.
    """
    argument = cache_argument(type(model))
    assert argument is not None, "its `forward` takes no cache"
    crossed = is_encoder_decoder(model)
    if crossed:
        cache = cross_cache(cache)
    words, mask_name = ("decoder_input_ids", "decoder_attention_mask") if crossed else ("input_ids", "attention_mask")
    logits: list[torch.Tensor] = []
    start = 0
    for piece in ids.split(lengths, dim=1):
        end = start + piece.shape[1]
        if reopened is not None and start and crossed:
            cache.self_attention_cache = reopened(cache.self_attention_cache)
        elif reopened is not None and start:
            cache = reopened(cache)
        inputs: dict[str, Any] = {words: piece, "use_cache": True, argument: cache}
        inputs |= beside_text(model, start, end, piece.shape[0])
        if mask is not None:
            inputs[mask_name] = mask[:, :end]
            positions = (mask[:, :end].cumsum(1) - 1).clamp(min=0)[:, start:]
            if "position_ids" in inspect.signature(model.forward).parameters:
                inputs["position_ids"] = positions
        logits.append(model(**inputs).logits)
        start = end
    return torch.cat(logits, dim=1)


def padded(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a left-padded batch of two made from `ids` [1, T], and its mask."""
    batch = ids[:1].repeat(len(PADDING), 1)
    mask = torch.ones_like(batch)
    for row, count in enumerate(PADDING):
        batch[row] = batch[row].roll(count)
        batch[row, :count] = 0
        mask[row, :count] = 0
    return batch, mask
