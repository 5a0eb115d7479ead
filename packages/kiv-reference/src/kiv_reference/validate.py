"""Checks on what a caller hands to a store (SPEC 2.5, 9)."""

from __future__ import annotations

import math

import torch

from .errors import KIVNonFiniteError, KIVShapeError, KIVUsageError, refuse

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_append(
    key: torch.Tensor, value: torch.Tensor, valid: torch.Tensor | None, like: tuple[torch.Tensor, torch.Tensor] | None
) -> None:
    """Check the arguments of `append`; `like` is a key and a value tensor already in the store."""
    if key.ndim != 4 or value.ndim != 4 or key.shape[:3] != value.shape[:3] or 0 in key.shape or 0 in value.shape:
        shapes = f"key {list(key.shape)}, value {list(value.shape)}"
        rule = "key must be [B, H, n, D] and value [B, H, n, DV], no size 0 (SPEC 9.1)"
        raise refuse(KIVShapeError, rule, shapes, "Hand over at least one token of every sequence.")
    if key.dtype not in DTYPES or value.dtype != key.dtype or value.device != key.device:
        kinds = f"{key.dtype} on {key.device} and {value.dtype} on {value.device}"
        rule = "key and value must share a device and a floating dtype of 16, 32 or 64 bits (SPEC 9.1)"
        raise refuse(KIVShapeError, rule, kinds, "Convert them before the append.")
    if valid is not None:
        check_mask(valid, key)
    if like is not None:
        for name, new, old in (("key", key, like[0]), ("value", value, like[1])):
            same = new.shape[:2] == old.shape[:2] and new.shape[3] == old.shape[3]
            if not same or new.dtype != old.dtype or new.device != old.device:
                now = f"{list(new.shape)} {new.dtype} on {new.device}"
                then = f"[{old.shape[0]}, {old.shape[1]}, n, {old.shape[3]}] {old.dtype} on {old.device}"
                raise refuse(
                    KIVShapeError, f"{name} must be {then} as before (SPEC 9.1)", now, "Reset the store first."
                )
    finite = torch.isfinite(key).all(dim=3).all(dim=1)  # [B, n]
    check_finite("key", finite if valid is None else finite | ~valid)


def check_mask(valid: torch.Tensor, key: torch.Tensor) -> None:
    """Check a validity mask for ``key [B, H, n, D]``."""
    expected = (key.shape[0], key.shape[2])
    if valid.dtype != torch.bool or tuple(valid.shape) != expected or valid.device != key.device:
        got = f"{valid.dtype} {list(valid.shape)} on {valid.device}"
        rule = f"valid must be bool {list(expected)} on {key.device} (SPEC 2.4)"
        raise refuse(KIVShapeError, rule, got, "Slice the attention mask to the new tokens.")


def check_finite(what: str, finite: torch.Tensor) -> None:
    """Refuse the first token that is not finite; `finite` is bool ``[B, n]``."""
    if not bool(finite.all()):
        sequence, token = (~finite).nonzero()[0].tolist()
        where = f"NaN or infinity in sequence {sequence}, token {token} of the call"
        rule = f"every {what} at a valid position must be finite (SPEC 2.5)"
        raise refuse(KIVNonFiniteError, rule, where, "Use a wider dtype, or look for the overflow in the model.")


def check_query(query: torch.Tensor, key: torch.Tensor, tokens: int, valid: torch.Tensor | None) -> None:
    """Check a query ``[B, HQ, TQ, D]`` against a stored key and the validity of its own positions, bool ``[B, TQ]``."""
    if tokens == 0:
        rule = "attend must follow an append (SPEC 9.1)"
        raise refuse(KIVUsageError, rule, "no tokens appended since the last crop", "Append the queries' own tokens.")
    batch, heads, width = key.shape[0], key.shape[1], key.shape[3]
    good = query.ndim == 4 and query.shape[0] == batch and query.shape[3] == width
    if not good or query.shape[1] == 0 or query.shape[1] % heads or query.dtype != key.dtype:
        rule = f"query must be [{batch}, multiple of {heads}, TQ, {width}] {key.dtype} (SPEC 9.1)"
        raise refuse(KIVShapeError, rule, f"{list(query.shape)} {query.dtype}", "Match the keys of this layer.")
    if query.device != key.device:
        raise refuse(KIVShapeError, f"query must be on {key.device} (SPEC 9.1)", query.device, "Move it there.")
    if query.shape[2] != tokens:
        rule = "attend needs the queries of exactly the tokens last appended (SPEC 9.1)"
        raise refuse(KIVUsageError, rule, f"TQ = {query.shape[2]}, {tokens} appended", "Append and attend in step.")
    finite = torch.isfinite(query).all(dim=3).all(dim=1)  # [B, TQ]
    check_finite("query", finite if valid is None else finite | ~valid)


def check_modifiers(
    query: torch.Tensor, scale: float, softcap: float | None, sink_logits: torch.Tensor | None
) -> torch.Tensor | None:
    """Check SPEC 8's arguments; returns the sink logits as ``[B, HQ, TQ]``, or None."""
    for name, number in (("scale", scale), ("softcap", softcap)):
        if number is not None and not (math.isfinite(number) and number > 0):
            raise refuse(KIVUsageError, f"{name} must be a finite number > 0", number, "Take the model's own.")
    if sink_logits is None:
        return None
    batch, heads, tokens, _ = query.shape
    if tuple(sink_logits.shape) == (heads,):
        sink_logits = sink_logits[None, :, None].expand(batch, heads, tokens)
    if tuple(sink_logits.shape) != (batch, heads, tokens):
        rule = f"sink_logits must be [{heads}] or [{batch}, {heads}, {tokens}] (SPEC 8.2)"
        raise refuse(KIVShapeError, rule, list(sink_logits.shape), "Reshape the model's sinks.")
    return sink_logits


def check_rows(rows: torch.Tensor, batch: int, same_size: bool) -> None:
    """Check row indices for reorder and select (SPEC 9.3)."""
    good = rows.ndim == 1 and rows.dtype == torch.int64 and rows.numel() > 0
    if not good or bool(((rows < 0) | (rows >= batch)).any()) or (same_size and rows.numel() != batch):
        size = f"[{batch}]" if same_size else "[1 or more]"
        rule = f"rows must be int64 {size} with values in 0..{batch - 1} (SPEC 9.3)"
        got = f"{rows.tolist()} ({rows.dtype})"
        raise refuse(KIVUsageError, rule, got, "Count sequences from 0.")
