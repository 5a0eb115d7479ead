"""Layers of a cache that look like full self-attention and are not: the cache alone does not tell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def stock_layers(config: PreTrainedConfig) -> frozenset[int]:
    """Return the layers that keep transformers' own cache layer although that is a `DynamicLayer`.

    GPT-Neo cuts the window of its local layers inside the attention module; Mllama keeps the states of an image, for
    cross-attention, in some layers of the same cache.
    """
    decoder: Any = config.get_text_config(decoder=True)
    if decoder.model_type == "gpt_neo":
        return frozenset(i for i, kind in enumerate(decoder.attention_layers) if kind == "local")
    if decoder.model_type == "mllama_text_model":
        return frozenset(decoder.cross_attention_layers)
    return frozenset()
