"""Which of the new tokens are padding: read from the attention call's mask, once it is known to be KIV's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from kiv_reference.errors import KIVError, KIVShapeError, KIVUnsupportedError, KIVUsageError, refuse

from ..guards.names import GO_BACK, NAME, USE_KIV

if TYPE_CHECKING:
    from ..cache.layer import KIVLayerMixin


def new_validity(
    module: torch.nn.Module,
    layer: KIVLayerMixin,
    query: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool | None,
) -> torch.Tensor | None:
    """Check that `mask` is the plain causal one and agrees with the store about old tokens.

    Returns
    -------
    bool [B, n] validity of the staged tokens, None if all are valid or none is staged

    Raises
    ------
    KIVUsageError
        It is of another call, was changed, or marks other old tokens as padding than the store does.
    KIVUnsupportedError
        It is no mask of padding, or the call is not causal.
    KIVShapeError
        It is of another batch.
    """
    where = type(module).__name__
    past = layer.store.length
    batch, queries, total = query.shape[0], query.shape[2], past + layer.staged_tokens
    if mask is not None and mask.ndim != 2:
        raise _special_mask(f"a mask of shape {tuple(mask.shape)} in {where}")
    plain = layer.handshake.plain
    if plain is None or plain.kv_length != total or plain.query_tokens != queries:
        rule = f'A KIV layer needs a mask that "{NAME}" made for this very call, {queries} queries over {total} tokens'
        remedy = f"{USE_KIV} If an earlier forward pass broke off: {GO_BACK}"
        raise refuse(KIVUsageError, rule, f"{plain} in {where}", remedy)
    if mask is None and queries > 1 and is_causal is False:
        shown, remedy = f"is_causal=False in {where}", "Use DynamicCache with this model."
        raise refuse(KIVUnsupportedError, "A KIV layer serves causal self-attention", shown, remedy)
    if (mask is not None) != plain.padded or (mask is not None and mask.shape[1] != total):
        raise refuse(
            KIVUsageError,
            f'A KIV layer needs the mask that "{NAME}" made',
            f"{None if mask is None else tuple(mask.shape)} in {where}, made was {plain}",
            "Use DynamicCache where the model changes its masks.",
        )
    old = layer.store.valid  # bool [B, T], None if every position is valid
    if mask is None:
        if old is not None:
            raise _other_padding()
        return None
    if mask.shape[0] not in (1, batch):
        shown = f"{tuple(mask.shape)} in {where}"
        rule = f"attention_mask must be [{batch}, {total}]"
        raise refuse(KIVShapeError, rule, shown, "Pass one row for each sequence.")
    mask = mask.expand(batch, total)
    before = mask[:, :past]
    if not (bool(before.all()) if old is None else torch.equal(before, old.to(mask.device))):
        raise _other_padding()
    return mask[:, past:] if past < total else None


def _special_mask(shown: str) -> KIVError:
    return refuse(
        KIVUnsupportedError,
        "A KIV layer needs the plain causal mask, with padding at most: no 4-D mask",
        shown,
        "Pass a 2-D attention_mask, or use DynamicCache where the model or the caller makes special masks.",
    )


def _other_padding() -> KIVError:
    return refuse(
        KIVUsageError,
        "attention_mask must mark the same earlier tokens as padding as it did when they were fed",
        "one that differs",
        "Pass the mask of the whole sequence in every call; what is in the cache cannot be masked afterwards.",
    )
