"""Changes of a cache's batch: of every layer, or of none (SPEC 9.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from kiv_reference.errors import KIVError, KIVUsageError, refuse
from transformers.cache_utils import LinearAttentionLayer

from .hybrid import no_batch_change
from .layer import KIVLayerMixin

if TYPE_CHECKING:
    from collections.abc import Sequence


def change_batch(layers: Sequence[Any], operation: str, argument: Any) -> None:
    """Call the method `operation` of every layer.

    Raises
    ------
    KIVUsageError
        `argument` names no rows, or is no count of them. No layer has changed.
    KIVUnsupportedError
        A layer with a linear state does not change its batch so. No layer has changed.
    KIVBudgetError
        A layer has no room. No layer has changed; if the change drops sequences, the message says what is left to do.
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
    own = [layer for layer in layers if isinstance(layer, KIVLayerMixin)]
    batch, done = max((layer.batch for layer in own), default=0), list[KIVLayerMixin]()
    if isinstance(argument, torch.Tensor) and argument.dtype == torch.bool and argument.shape != (batch,) and batch:
        rule = f"{operation} takes a flag of each sequence"
        raise refuse(KIVUsageError, rule, f"{tuple(argument.shape)} of {batch}", "Pass one flag a sequence, or rows.")
    for layer in own:
        try:
            getattr(layer, operation)(argument)
        except KIVError as error:
            if done:
                _take_back(done, operation, _inverse(operation, argument, batch), error)
            raise
        if layer.store.length > 0:
            done.append(layer)
    for layer in layers:
        if not isinstance(layer, KIVLayerMixin):
            getattr(layer, operation)(argument)


def _inverse(operation: str, argument: Any, batch: int) -> torch.Tensor | None:
    """Return the rows that bring `batch` sequences back after a change, None if it drops some of them."""
    if operation == "batch_repeat_interleave":
        return torch.arange(0, batch * argument, argument, device="cpu")
    rows: list[int] = (argument.nonzero().flatten() if argument.dtype == torch.bool else argument).tolist()
    if set(rows) != set(range(batch)):
        return None
    return torch.tensor([rows.index(row) for row in range(batch)], device="cpu")


def _take_back(layers: list[KIVLayerMixin], operation: str, rows: torch.Tensor | None, error: KIVError) -> None:
    # Of a hybrid layer both parts, which only a reordering reaches.
    back = operation if operation == "reorder_cache" else "batch_select_indices"
    try:
        if rows is not None:
            for layer in layers:
                getattr(layer, back)(rows)
            return
    except KIVError as second:
        error = second
    raise refuse(
        type(error),
        "a change of the batch that one layer refuses is taken back in the others, as far as they kept every sequence",
        str(error),
        "Call cache.reset() and feed the text again; next time change a fork, or give the cache more room.",
    ) from error
