"""The mask function named "kiv": for a KIV layer None or the 2-D padding mask, for others what they get without KIV."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from kiv_reference.errors import KIVShapeError, KIVUsageError, refuse
from transformers.masking_utils import causal_mask_function

from ..guards.active import other_cache_active, this_cache_active
from ..guards.eager import outside_graphs
from ..guards.handshake import Handshake, MaskLength, PlainMask
from .stock import stock_mask

if TYPE_CHECKING:
    from collections.abc import Callable

ADDS_TO_MASK = frozenset({"falcon"})
"""Models that ask for the tensor of a causal mask only to add ALiBi to it, which their patch does in another way."""

NEEDS_MASK = frozenset({"mpt"})
"""Models whose code fails on a mask of None."""


@outside_graphs
def kiv_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor | None:
    """Make the mask of one forward pass; the parameters are those of `transformers.masking_utils.sdpa_mask`.

    Of the further ones ``config``, ``local_size`` and ``allow_is_causal_skip`` are looked at here.

    Returns
    -------
    Tensor or None
        For a KIV layer and a plain causal mask: None if every position is valid, else bool [B, T]. No tensor of
        TQ x T elements is made. Otherwise the mask that the model would get without KIV; a KIV layer refuses it.
    """
    arguments: dict[str, Any] = {
        "batch_size": batch_size, "q_length": q_length, "kv_length": int(kv_length), "q_offset": q_offset,
        "kv_offset": kv_offset, "mask_function": mask_function, "attention_mask": attention_mask,
        "config": kwargs.pop("config", None), "local_size": kwargs.pop("local_size", None),
    }  # fmt: skip
    allow_is_causal_skip: bool = kwargs.pop("allow_is_causal_skip", True)
    if not isinstance(kv_length, MaskLength):
        other_cache_active()
        return stock_mask(**arguments, allow_is_causal_skip=allow_is_causal_skip, **kwargs)
    handshake = kv_length.handshake
    handshake.require_model(arguments["config"])
    this_cache_active(handshake)
    if not kv_length.of_kiv_layer:
        return stock_mask(**arguments, allow_is_causal_skip=allow_is_causal_skip, **kwargs)
    model_type = getattr(arguments["config"], "model_type", None)
    square = (
        arguments["local_size"] is None
        and not isinstance(q_offset, torch.Tensor)
        and kv_offset == 0
        and kv_length == q_offset + q_length
    )
    causal = mask_function is causal_mask_function
    # Who wants the tensor of a causal mask will use it in a way of its own.
    plain = square and causal and (allow_is_causal_skip or model_type in ADDS_TO_MASK)
    if not plain:
        # Nothing is skipped: None would tell a KIV layer that the mask is the plain one.
        kwargs.update(allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
        mask = stock_mask(**arguments, **kwargs)
        # An overlay that changes nothing, as that of images in a text without any, leaves the mask plain.
        arguments["mask_function"] = causal_mask_function
        if causal or not square or not _equal(mask, stock_mask(**arguments, **kwargs)):
            handshake.mask_answered(None)
            return mask
    padding = _padding(attention_mask, int(kv_length))
    if padding is None and model_type in NEEDS_MASK:
        padding = torch.ones(1, 1, dtype=torch.bool, device=kwargs.get("device")).expand(batch_size, int(kv_length))
    handshake.mask_answered(PlainMask(int(kv_length), q_length, padding is not None))
    _require_same_past(handshake, padding, int(kv_length) - q_length, batch_size)
    return padding


def _require_same_past(handshake: Handshake, mask: torch.Tensor | None, past: int, batch_size: int) -> None:
    """Refuse a mask, bool [B, T], that marks others of the first `past` tokens as padding than are so in the cache.

    Before any layer has its new tokens: a cache whose mask was refused goes on with the right one.
    """
    if mask is not None and mask.shape[0] not in (1, batch_size):
        raise refuse(
            KIVShapeError,
            f"attention_mask must be [{batch_size}, {mask.shape[1]}]",
            tuple(mask.shape),
            "Pass one row for each sequence.",
        )
    store = handshake.store_of(past)
    old = None if store is None else store.valid
    if store is None or (old is None and mask is None) or (old is not None and old.shape[0] != batch_size):
        return  # nothing to compare with; of other sequences than the cache has, the store refuses the keys
    new = torch.ones(1, past, dtype=torch.bool, device="cpu") if mask is None else mask[:, :past]
    old = torch.ones(1, past, dtype=torch.bool, device="cpu") if old is None else old
    differs = old.to(new.device) != new
    if bool(differs.any()):
        handshake.forget()
        position = int(differs.any(0).nonzero()[0])
        row = int(differs[:, position].nonzero()[0])
        now = "no padding" if bool(new.expand(differs.shape)[row, position]) else "padding"
        raise refuse(
            KIVUsageError,
            "attention_mask must mark the same earlier tokens as padding as it did when they were fed",
            f"one that differs first at position {position}, of sequence {row}, which is {now} now",
            f"To change it, call cache.crop({position - past}) and feed the tokens from position {position} on again "
            "(cache.reset() and all of them, where a layer cannot be cropped).",
        )


def _equal(mask: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return mask is not None and other is not None and torch.equal(mask, other)


def _padding(attention_mask: torch.Tensor | None, total: int) -> torch.Tensor | None:
    """Check the 2-D mask, bool [B, T]; None if every position is valid."""
    if attention_mask is None:
        return None
    if attention_mask.ndim != 2 or attention_mask.shape[1] != total:
        raise refuse(
            KIVShapeError,
            f"attention_mask must be [B, {total}]: every token of the cache, then the new ones",
            tuple(attention_mask.shape),
            "Pass the mask of the whole sequence, or none if nothing is padding.",
        )
    mask = attention_mask.to(torch.bool)
    return None if bool(mask.all()) else mask
