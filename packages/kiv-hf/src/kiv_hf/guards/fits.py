"""Does a cache fit the model that uses it? Its layers are those of one configuration: kinds, windows, heads, widths."""

from __future__ import annotations

from typing import Any, cast

from kiv_reference.errors import KIVError, KIVUsageError, refuse
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from .layer_choice import stock_layers

_RULE = "A KIVCache serves the model whose configuration it was made with"
_REMEDY = "Make one for this model: KIVCache(model.config)."

_SIZES = (
    "num_attention_heads", "num_key_value_heads", "head_dim", "v_head_dim", "kv_lora_rank", "qk_rope_head_dim",
    "hidden_size",
)  # fmt: skip
"""Heads and widths, by the names under which transformers finds them in most configurations."""

_DETAILS = ("sliding_window", "number_of_states")


def require_fit(made_with: PreTrainedConfig, model: PreTrainedConfig) -> None:
    """Refuse a model that needs other cache layers than a cache made with `made_with` has, or fills them otherwise.

    Parameters
    ----------
    made_with, model : PreTrainedConfig
        The configuration the cache was made with, and the one that the model's decoder reads.

    Raises
    ------
    KIVUsageError
        They differ in the number of layers, in the kind of a layer or its window, in heads or widths.
    """
    # A model with an encoder's and a decoder's fields side by side reads them all; only the decoder's count here.
    made_with, model = made_with.get_text_config(decoder=True), model.get_text_config(decoder=True)
    ours, theirs = _layers(made_with), _layers(model)
    if len(ours) != len(theirs):
        raise refuse(KIVUsageError, _RULE, f"a cache of {len(ours)} layers, and a model of {len(theirs)}", _REMEDY)
    for i, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        if our != their:
            raise _unlike(i, our, their)
    # Of each layer: where layers differ, as in Gemma 4, the configuration of the whole refuses to be asked.
    for i, (ours_of, theirs_of) in enumerate(zip(made_with.per_layer_config, model.per_layer_config, strict=False)):
        for name in _SIZES:
            our, their = getattr(ours_of, name, None), getattr(theirs_of, name, None)
            if our is not None and their is not None and our != their:
                raise _unlike(i, f"{name}={our}", f"{name}={their}")


def _unlike(i: int, our: str, their: str) -> KIVError:
    shown = f"a cache whose layer {i} is for {our}, and a model whose layer {i} has {their}"
    return refuse(KIVUsageError, _RULE, shown, _REMEDY)


def _layers(config: PreTrainedConfig) -> list[str]:
    """Say of each layer what its cache layer is for."""
    stock = stock_layers(config)
    layers = enumerate(DynamicCache(config=config).layers)
    return [_kind(layer) + (" that is not KIV's" if i in stock else "") for i, layer in layers]


def _kind(layer: Any) -> str:
    if type(layer) is DynamicLayer:
        return "full attention"
    if type(layer) is DynamicSlidingWindowLayer:
        return f"a sliding window of {layer.sliding_window} tokens"
    fields = cast("dict[str, object]", vars(layer))
    details = [f"{name}={value}" for name, value in sorted(fields.items()) if name in _DETAILS]
    return f"a {type(layer).__name__}({', '.join(details)})"
