"""Lengths of a cache whose process runs only some of the model's layers, as pipeline parallelism has it.

Each process has a cache for all layers, and those that other processes run stay empty. transformers asks the first
layer, or the first of its kind, how many tokens have been seen: where that one is empty, a layer in use answers.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from transformers.cache_utils import DynamicSlidingWindowLayer

from .layer import KIVLayerMixin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedConfig

TOKEN_LAYERS = (KIVLayerMixin, DynamicSlidingWindowLayer)
"""Layers whose length is that of the text; others may hold states of an image, or none."""


def is_pipeline(config: PreTrainedConfig) -> bool:
    """Tell whether transformers divided the layers of the model of this configuration between processes."""
    return int(getattr(getattr(config, "distributed_config", None), "pp_size", None) or 1) > 1


def seen_tokens(layers: Sequence[Any], layer_idx: int, *, pipeline: bool) -> int:
    """Return the tokens that the layers in use hold, for an empty layer that asks what it would hold.

    Parameters
    ----------
    layers : all layers of the cache
    layer_idx : int
        The empty layer. Layers run in order: a later one with tokens shows that this process does not run it. Earlier
        ones may just have got the tokens that it is about to get.
    pipeline : bool
        Ask the earlier layers too, for the first layer of its kind: masks for a kind are made before any layer runs.
    """
    kinds: list[type[Any]] = [type(layer) for layer in layers]
    start = 0 if pipeline and kinds[layer_idx] not in kinds[:layer_idx] else layer_idx
    in_use = (layer for layer in layers[start:] if isinstance(layer, TOKEN_LAYERS) and layer.is_initialized)
    return max((layer.get_seq_length() for layer in in_use), default=0)


def sizes_if_used(layer: Any, tokens: int, query_tokens: int) -> tuple[int, int]:
    """Return the mask sizes that `layer`, which is empty, would give if it had taken `tokens` tokens.

    No attention of this process uses that mask; but it is made, and its width is checked against the caller's mask.

    Returns
    -------
    length, offset : int
        As `Cache.get_mask_sizes` has them.
    """
    if hasattr(layer, "cumulative_length"):  # a sliding window: what it keeps follows from how many it has seen
        used = copy.copy(layer)
        used.cumulative_length = tokens
        return used.get_mask_sizes(query_tokens)
    return tokens + query_tokens, 0
