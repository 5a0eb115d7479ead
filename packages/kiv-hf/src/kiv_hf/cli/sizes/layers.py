"""What each layer of a cache keeps of a token, and beside that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from kiv_reference.errors import KIVError, KIVUnsupportedError, refuse

from ... import KIVCache
from ...patches.position_bias import with_position_bias
from .shapes import DTYPE, TOKENS, Traced

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ALIBI_TYPES = ("bloom", "mpt")
"""Model types whose keys get channels for the bias of their position; Falcon's have it in a field."""


@dataclass(frozen=True)
class LayerSizes:
    """One layer of a cache.

    Attributes
    ----------
    kiv : bool
        Whether it is a KIV layer: full attention.
    query_heads, heads, key_width, value_width : int
        HQ, H, D and DV of what a store keeps, which for latent attention are those of the latents; 0 without attention.
    plain_numbers : int
        Numbers that a plain cache keeps of a token, those of an indexer too.
    window : int or None
        The most tokens that it keeps.
    narrow, wide : int
        Numbers of recurrent and convolution states: in the dtype of the model, and bytes of those that are not.
    """

    kiv: bool
    query_heads: int
    heads: int = 0
    key_width: int = 0
    value_width: int = 0
    plain_numbers: int = 0
    window: int | None = None
    narrow: int = 0
    wide: int = 0

    @property
    def token_numbers(self) -> int:
        """Numbers that a store keeps of a token."""
        return self.heads * (self.key_width + self.value_width)

    def kept_tokens(self, tokens: int) -> int:
        """Return how many of `tokens` it keeps."""
        return tokens if self.window is None else min(tokens, self.window)

    def bytes_at(self, tokens: int, dtype: torch.dtype) -> int:
        """Count the bytes that a plain cache takes for `tokens`, with states."""
        numbers = self.plain_numbers * self.kept_tokens(tokens) + self.narrow
        return numbers * dtype.itemsize + self.wide


def layer_sizes(config: PreTrainedConfig, traced: Traced, dtype: torch.dtype) -> tuple[LayerSizes, ...]:
    """Return the sizes of every layer that keeps something.

    Parameters
    ----------
    traced : Traced
        A pass of the model; where that broke off, heads and widths are those of the configuration's fields.
    dtype : torch.dtype
        Of keys: the bias of a position takes more channels in a narrow one.

    Raises
    ------
    KIVUnsupportedError
        The pass broke off, and the fields do not tell.
    """
    text: Any = config.get_text_config(decoder=True)
    cache = KIVCache(config)
    ours, latent = set(cache.kiv_layers()), _latent_layers(traced)
    cache.close()
    found: list[LayerSizes] = []
    for i, layer in enumerate(traced.cache.layers):
        query_heads = field(text, i, "num_attention_heads") or 0
        if traced.problem:
            if latent:
                raise _unknown(text, traced.problem)
            found.append(_from_fields(text, layer, i, i in ours, query_heads, traced.problem))
            continue
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        narrow, wide = _states(layer)
        if keys is None or values is None:
            if narrow or wide:
                found.append(LayerSizes(False, query_heads, narrow=narrow, wide=wide))
            continue
        kept = keys.shape[1], keys.shape[3], values.shape[3]
        numbers = sum(part.numel() // TOKENS for part in (keys, values, *_indexer(layer)))
        if i in ours:
            kept = _kept_by_kiv(config, text, dtype, kept, i in latent)
        found.append(LayerSizes(i in ours, query_heads, *kept, numbers, _window(layer), narrow, wide))
    return tuple(found)


def field(text: Any, layer: int, name: str) -> int | None:
    """Read a field that may be of the whole, a list, or of each layer's own configuration; None if there is none."""
    own = getattr(text, "per_layer_config", None)
    found = getattr(text if own is None else own[layer], name, None)
    return cast("list[int]", found)[layer] if isinstance(found, (list, tuple)) else found


def _kept_by_kiv(
    config: PreTrainedConfig, text: Any, dtype: torch.dtype, kept: tuple[int, int, int], latent: bool
) -> tuple[int, int, int]:
    """Return H, D and DV of a store, of which `kept` are what a plain cache gets (`kiv_hf.cache.adapters`)."""
    heads, key, value = kept
    if latent:
        return heads, key + value, key
    if text.model_type == "diffllama":  # the values of both halves, for each head
        return heads, key, 2 * value
    if text.model_type in ALIBI_TYPES or getattr(config, "alibi", False) is True:
        one = torch.zeros(1, 1, 1, 1, dtype=dtype, device="cpu")
        _, longer = with_position_bias(one, one, one[..., 0], 1.0)
        return heads, key + longer.shape[-1] - 1, value
    return kept


def _latent_layers(traced: Traced) -> set[int]:
    modules = traced.model.modules()
    return {module.layer_idx for module in modules if hasattr(module, "expand_kv") and hasattr(module, "layer_idx")}


def _window(layer: Any) -> int | None:
    # Of a window of W tokens the layer keeps the W - 1 that the next one sees beside itself.
    window = getattr(layer, "sliding_window", None)
    return None if window is None else max(window - 1, 0)


def _indexer(layer: Any) -> list[torch.Tensor]:
    fields = cast("dict[str, object]", vars(layer))
    return [part for name, part in fields.items() if name.startswith("indexer") and isinstance(part, torch.Tensor)]


def _states(layer: Any) -> tuple[int, int]:
    """Count numbers of states in the model's dtype, and bytes of others."""
    narrow = wide = 0
    for name in ("conv_states", "recurrent_states"):
        for state in dict(getattr(layer, name, None) or {}).values():
            if state is not None and state.dtype == DTYPE:
                narrow += state.numel()
            elif state is not None:
                wide += state.numel() * state.element_size()
    return narrow, wide


def _from_fields(text: Any, layer: Any, i: int, kiv: bool, query_heads: int, problem: str) -> LayerSizes:
    heads = field(text, i, "num_key_value_heads") or query_heads
    hidden = field(text, i, "hidden_size") or 0
    width = field(text, i, "head_dim") or (hidden // query_heads if query_heads else 0)
    if not heads or not width or hasattr(layer, "conv_states"):
        raise _unknown(text, problem)
    value = field(text, i, "v_head_dim") or width
    return LayerSizes(kiv, query_heads, heads, width, value, heads * (width + value), _window(layer))


def _unknown(text: Any, problem: str) -> KIVError:
    return refuse(
        KIVUnsupportedError,
        "What a model keeps of a token must be known from its configuration",
        f"{text.model_type!r}, which breaks off a pass without weights ({problem}) and whose fields do not tell",
        "Load the model and look at KIVCache.memory() instead.",
    )
