"""Layers that are not KIV's: masks and attention exactly as transformers would make them without KIV.

That is sdpa, or for a model that does not support sdpa its own eager function with eager's masks.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
from kiv_reference.errors import KIVShapeError, KIVUnsupportedError, refuse
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward  # pyright: ignore[reportUnknownVariableType]
from transformers.masking_utils import eager_mask, sdpa_mask  # pyright: ignore[reportUnknownVariableType]

from ..guards.active import active_handshake
from .selection import with_selection

if TYPE_CHECKING:
    from collections.abc import Callable

_EAGER_ONLY = ("softcap", "s_aux", "sinks")
"""Arguments that sdpa cannot honour, whatever the model says of itself."""


def stock_mask(config: Any, **arguments: Any) -> torch.Tensor | None:
    """Make the mask that transformers would, from the arguments of `sdpa_mask`, for a model of this configuration."""
    make = cast("Any", eager_mask if eager_only(type(cast("object", config))) else sdpa_mask)
    return make(config=config, **arguments)


@cache
def eager_only(config_class: type) -> bool:
    """Tell whether the models of `config_class` lack sdpa, so that transformers runs them with eager attention."""
    # A package may have several modeling files, as BLIP has one for its text.
    files = config_class.__module__.rpartition(".")[0] + ".modeling_"
    modules = [module for name, module in list(sys.modules.items()) if name.startswith(files)]
    models = [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, PreTrainedModel) and value.config_class is config_class
    ]
    return bool(models) and not any(model._supports_sdpa for model in models)  # pyright: ignore[reportPrivateUsage]


def stock_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as "sdpa" does, or as the model's eager function where the model or the call needs what sdpa lacks.

    A mask in KIV's form (2-D, or None for the plain triangle) is spelled out first: sdpa reads None as an
    upper-left triangle, eager as no mask at all.

    Returns
    -------
    output [B, TQ, HQ, DV], None

    Raises
    ------
    KIVUnsupportedError
        The call needs eager attention, and the model has none.
    KIVShapeError
        A 2-D mask does not cover every key.
    """
    mask = _spell_out(module, query, key, attention_mask, kwargs.get("is_causal"))
    mask = with_selection(module, query, key, mask, kwargs.pop("indices", None), kwargs.pop("block_indices", None))
    eager = _eager_function(module)
    model_is_eager = eager is not None and eager_only(type(cast("object", getattr(module, "config", None))))
    if not model_is_eager and all(kwargs.get(name) is None for name in _EAGER_ONLY):
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)
    if not model_is_eager and mask is None and query.shape[2] > 1 and _causal(module, kwargs.get("is_causal")):
        mask = _causal_mask(query, key)  # an sdpa mask that was skipped
    if mask is not None and mask.dtype == torch.bool:
        lowest = torch.finfo(query.dtype).min
        mask = torch.where(mask, torch.zeros((), dtype=query.dtype, device=mask.device), lowest)
    if eager is None:
        raise refuse(
            KIVUnsupportedError,
            "A layer with softcap or sinks that is not KIV's needs the model's eager_attention_forward",
            f"none beside {type(module).__name__}",
            'Use attn_implementation="eager" and a DynamicCache with this model.',
        )
    output, _ = eager(module, query, key, value, mask, **kwargs)
    return output, None


def _spell_out(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool | None,
) -> torch.Tensor | None:
    queries, total = query.shape[2], key.shape[2]
    if mask is None:
        handshake = active_handshake()
        plain = None if handshake is None else handshake.plain
        ours = plain is not None and not plain.padded and (plain.kv_length, plain.query_tokens) == (total, queries)
        if ours and queries > 1 and _causal(module, is_causal):
            return _causal_mask(query, key)
        return None
    if mask.ndim != 2:
        return mask
    if mask.shape[1] != total:
        raise refuse(
            KIVShapeError,
            "A 2-D mask must cover every key",
            f"width {mask.shape[1]} for {total} keys in {type(module).__name__}",
            "Use DynamicCache with this model.",
        )
    return _causal_mask(query, key) & mask.to(torch.bool)[:, None, None, :]


def _causal(module: torch.nn.Module, is_causal: bool | None) -> bool:
    """Tell whether sdpa would take this call as causal."""
    return bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)


def _causal_mask(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Return the lower-right triangle, bool [1, 1, TQ, T]."""
    queries, total = query.shape[2], key.shape[2]
    position = torch.arange(total, device=query.device)
    return (position <= position[total - queries :, None])[None, None]


def _eager_function(module: torch.nn.Module) -> Callable[..., Any] | None:
    """Return the eager attention of the file that defines the module's class, or a base class of it, if any."""
    for base in type(module).__mro__:
        function = getattr(sys.modules.get(base.__module__), "eager_attention_forward", None)
        if function is not None:
            return function
    return None
