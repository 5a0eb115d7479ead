"""The attention function named "kiv": a KIV layer's store answers; any other layer is attended as without KIV."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from kiv_reference.errors import KIVUnsupportedError, refuse
from transformers.utils import logging

from ..guards.active import active_handshake, foreign_tensors, other_cache_active
from ..guards.eager import outside_graphs
from ..guards.names import NAME
from .resolve import resolve, resolve_adapted
from .stock import stock_attention
from .validity import new_validity

if TYPE_CHECKING:
    from ..cache.adapters import Adapted
    from ..cache.layer import KIVLayerMixin

_logger = logging.get_logger(__name__)

_REFUSED_ARGUMENTS = ("position_bias", "indices", "block_indices")
"""Arguments that change what is attended, and that a store cannot honour: biases and selections of the model's own."""


@outside_graphs
def kiv_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers' attention interface defines it.

    Parameters
    ----------
    module : torch.nn.Module
        The attention module that calls; used for defaults and messages, never to find the layer.
    query : [B, HQ, TQ, D]
    key, value : [B, H, T, D] and [B, H, T, DV]
        What the cache returned.
    attention_mask : None, bool [B, T], or for layers that are not KIV's whatever their mask function made
    **kwargs
        ``scaling``, ``softcap``, ``s_aux`` [HQ] or ``sinks`` [B, HQ, TQ, 1] are honoured on KIV layers; what would
        change the attended set is refused. `sliding_window` is not read, as sdpa does not: the mask says what may be
        seen.

    Returns
    -------
    output [B, TQ, HQ, DV], None

    Raises
    ------
    KIVUnsupportedError, KIVUsageError
        The call is not the causal self-attention over the tokens of the layer's last update.
    """
    if kwargs.get("output_attentions"):
        _logger.warning_once(f"`{NAME}` attention does not support `output_attentions=True`: it returns no weights.")
    if kwargs.get("cache") is not None:
        raise refuse(
            KIVUnsupportedError,
            f'The attention implementation "{NAME}" does not serve continuous batching',
            type(cast("object", kwargs["cache"])),
            'Use attn_implementation="sdpa" for it.',
        )
    layer, adapted = resolve(key, value), None
    if layer is None:
        found = resolve_adapted(module, key, value)
        if found is None:
            _refuse_foreign(module, key, value)
            return _attend_stock(module, query, key, value, attention_mask, kwargs)
        layer, adapted = found
    tokens = layer.staged_tokens
    start = layer.store.length
    if not tokens:  # a layer that attends to what an earlier one appended
        tokens = query.shape[2]
        start -= tokens
    try:
        return _attend(layer, adapted, module, query, attention_mask, kwargs), None
    except BaseException:
        # All layers together: so the same call, with its mistake mended, goes on (SPEC 10.4).
        layer.handshake.undo_pass(start, tokens)
        raise


def _attend_stock(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    kwargs: dict[str, Any],
) -> tuple[torch.Tensor, None]:
    """Attend as without KIV, [B, TQ, HQ, DV]; if that fails in a window of a KIVCache, all its layers go back."""
    try:
        return stock_attention(module, query, key, value, attention_mask, **kwargs)
    except BaseException:
        handshake = active_handshake()
        if handshake is not None:
            handshake.undo_stock(key)
        raise


def _attend(
    layer: KIVLayerMixin,
    adapted: Adapted | None,
    module: torch.nn.Module,
    query: torch.Tensor,
    attention_mask: torch.Tensor | None,
    kwargs: dict[str, Any],
) -> torch.Tensor:
    """Give the layer its staged tokens, and answer the queries, [B, TQ, HQ, DV]."""
    tokens = layer.staged_tokens
    config = getattr(module, "config", None)
    if config is not layer.handshake.config:
        layer.handshake.require_model(config)  # again: a caller's own mask asks KIV for none
    _check_call(module, query, tokens, kwargs)
    sinks = _sink_logits(kwargs)
    if adapted is not None and sinks is not None:
        raise refuse(
            KIVUnsupportedError,
            "Learned sinks belong to query heads as the model orders them",
            f"sinks in {type(module).__name__}, which changes its keys after the cache update",
            "Use DynamicCache with this model.",
        )
    valid = new_validity(module, layer, query, attention_mask, kwargs.get("is_causal"))
    if tokens:
        layer.take_staged(module, valid, None if adapted is None else adapted.states)
    width = query.shape[-1]
    if adapted is not None:
        query = adapted.query(query)
    scaling: float | None = kwargs.get("scaling")
    kind = query.device.type
    autocast = torch.is_autocast_enabled(kind)
    if autocast:  # keys may be wider than queries, where a model gathers them from two parts
        query = query.to(layer.dtype)
    output = layer.store.attend(
        query,
        scale=width**-0.5 if scaling is None else float(scaling),
        softcap=kwargs.get("softcap"),
        sink_logits=sinks,
        remaining_prompt_tokens=layer.handshake.prompt.remaining(layer.store),
    )
    if adapted is not None:
        output = adapted.output(output)
    if autocast:  # what sdpa gives then
        output = output.to(torch.get_autocast_dtype(kind))
    return output.transpose(1, 2).contiguous()


def _refuse_foreign(module: torch.nn.Module, key: torch.Tensor, value: torch.Tensor) -> None:
    """Refuse tensors that some module made from what a KIV layer returned."""
    handshake = active_handshake()
    if handshake is None:
        return
    if handshake.staged is not None and handshake.waits():
        layer = handshake.staged
        handshake.undo_pass(layer.store.length, layer.staged_tokens)
        raise foreign_tensors(module)
    if handshake.staged is not None:  # of a forward pass that has ended: this module belongs to another
        other_cache_active()
        return
    # A copy of placeholders, as a move between devices makes; only that length is looked at, to spare a device sync.
    if handshake.plain is not None and key.shape[2] == handshake.plain.kv_length:
        first = torch.stack([key[0, 0, 0, 0].float(), value[0, 0, 0, 0].float()])
        if bool(first.isnan().any()):
            raise foreign_tensors(module)


def _check_call(module: torch.nn.Module, query: torch.Tensor, tokens: int, kwargs: dict[str, Any]) -> None:
    """Refuse what no store computes: other sets of keys, dropout, gradients, cross-attention.

    Raises
    ------
    KIVUnsupportedError
        The call asks for one of them.
    """
    for name in _REFUSED_ARGUMENTS:
        if kwargs.get(name) is not None:
            raise refuse(
                KIVUnsupportedError,
                f"A KIV layer cannot honour the attention argument {name!r}",
                f"{name} from {type(module).__name__}",
                "Use DynamicCache with this model.",
            )
    dropout = cast("float", kwargs.get("dropout") or 0.0)
    if dropout > 0 or module.training:
        raise refuse(
            KIVUnsupportedError,
            "KIV serves models in evaluation mode without attention dropout",
            f"training={module.training}, dropout={dropout} in {type(module).__name__}",
            "Call model.eval().",
        )
    if query.requires_grad:
        raise refuse(
            KIVUnsupportedError,
            "KIV computes no gradients",
            "a query that requires them",
            "Call the model under torch.no_grad() or torch.inference_mode().",
        )
    if tokens and query.shape[2] != tokens:
        raise refuse(
            KIVUnsupportedError,
            "A KIV layer serves causal self-attention: one query for each new token",
            f"{query.shape[2]} queries and {tokens} new tokens in {type(module).__name__}",
            "Use DynamicCache for cross-attention.",
        )


def _sink_logits(kwargs: dict[str, Any]) -> torch.Tensor | None:
    """Return the learned sink logits, [HQ] or [B, HQ, TQ]: gpt-oss calls them `s_aux`; `sinks` is [B, HQ, TQ, 1]."""
    sinks: torch.Tensor | None = kwargs.get("s_aux")
    if sinks is None:
        sinks = kwargs.get("sinks")
    if sinks is None:
        return None
    return sinks.detach().squeeze(-1) if sinks.ndim == 4 else sinks.detach()
