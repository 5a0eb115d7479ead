"""Changes of a cache's batch: of every layer, or of none (SPEC 9.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from kiv_reference.errors import KIVUsageError, refuse
from transformers.cache_utils import LinearAttentionLayer

from .hybrid import no_batch_change
from .layer import KIVLayerMixin


def change_batch(layers: Sequence[Any], operation: str, argument: Any) -> None:
    """Call the method `operation` of every layer.

    Raises
    ------
    KIVUsageError
        `argument` names no rows, or is no count of them. No layer has changed.
    KIVUnsupportedError
        A layer with a linear state does not change its batch so. No layer has changed.
    """
    if operation == "batch_repeat_interleave":
        if not isinstance(argument, int) or isinstance(argument, bool):
            raise refuse(KIVUsageError, f"{operation} takes an integer", repr(argument), "Pass how often to repeat.")
    elif not isinstance(argument, torch.Tensor) or argument.is_floating_point() or argument.is_complex():
        shown = argument.dtype if isinstance(argument, torch.Tensor) else repr(argument)
        raise refuse(KIVUsageError, f"{operation} takes a tensor of integers", shown, "Count sequences from 0.")
    if operation != "reorder_cache" and any(isinstance(layer, LinearAttentionLayer) for layer in layers):
        raise no_batch_change(operation)
    # KIV's first: they refuse what is no row of the batch, which transformers' own would take or half-take.
    for layer in sorted(layers, key=lambda layer: not isinstance(layer, KIVLayerMixin)):
        getattr(layer, operation)(argument)
