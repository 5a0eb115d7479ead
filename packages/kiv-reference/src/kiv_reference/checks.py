"""Checks of what a caller hands to a store, which every implementation may share (SPEC 2.5, 8, 9).

They are part of the contract, like the errors they raise, and cheap where everything is in order.
"""

from __future__ import annotations

import math
import numbers
import operator
import sys
from fractions import Fraction
from typing import Any, NamedTuple, cast

import torch

from .errors import KIVNonFiniteError, KIVShapeError, KIVUsageError, refuse

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class StoreShape(NamedTuple):
    """What the first append fixes for a store's life (SPEC 9.1)."""

    batch: int
    heads: int
    key_width: int
    value_width: int
    dtype: torch.dtype
    device: torch.device


def check_tensor(name: str, value: object) -> None:
    """Refuse what is not a tensor with numbers of its own, side by side in memory.

    Raises
    ------
    KIVShapeError
    """
    if not isinstance(value, torch.Tensor):
        raise refuse(KIVShapeError, f"{name} must be a tensor", type(value).__name__, "Make it one.")
    empty = value.is_meta and type(value) is torch.Tensor  # a subclass may keep its numbers elsewhere
    if value.layout != torch.strided or value.is_nested or value.is_quantized or empty:
        got = f"{value.layout}, {value.dtype} on {value.device}"
        rule = f"{name} must be a dense tensor with numbers, not sparse, nested, quantised or on meta"
        raise refuse(KIVShapeError, rule, got, "Convert it first.")


def integer(name: str, value: object) -> int:
    """Return `value` as an integer; refuse everything that is not a whole number by its type, bool too.

    Raises
    ------
    KIVUsageError
    """
    try:
        if isinstance(value, bool) or (isinstance(value, torch.Tensor) and value.dtype == torch.bool):
            raise TypeError
        return operator.index(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, RuntimeError):
        raise refuse(KIVUsageError, f"{name} must be an integer", repr(value), "Convert it first.") from None


def _positive(number: Any) -> bool:
    """Tell whether it is a finite number above 0 that a tensor can be multiplied by."""
    if isinstance(number, torch.Tensor):
        return number.ndim == 0 and number.is_floating_point() and not number.is_meta and 0 < float(number) < math.inf
    real = type(number) is float or (isinstance(number, numbers.Real) and not isinstance(number, (bool, Fraction)))
    return real and bool(0 < cast("float", number) <= sys.float_info.max)


def check_append(
    key: torch.Tensor, value: torch.Tensor, valid: torch.Tensor | None, fixed: StoreShape | None
) -> StoreShape:
    """Check shapes, dtypes and devices of an append, and return the shape that it gives the store.

    Parameters
    ----------
    key, value, valid : as in `LayerStore.append`
    fixed : StoreShape, optional
        What an earlier append fixed.

    Raises
    ------
    KIVShapeError
    """
    for name, tensor in (("key", key), ("value", value), *(() if valid is None else (("valid", valid),))):
        check_tensor(name, tensor)
    if key.ndim != 4 or value.ndim != 4 or key.shape[:3] != value.shape[:3] or 0 in key.shape or 0 in value.shape:
        got = f"key {list(key.shape)}, value {list(value.shape)}"
        rule = "key must be [B, H, n, D] and value [B, H, n, DV], no size 0 (SPEC 9.1)"
        raise refuse(KIVShapeError, rule, got, "Hand over at least one token of every sequence.")
    if key.dtype not in DTYPES or value.dtype != key.dtype or value.device != key.device:
        got = f"{key.dtype} on {key.device} and {value.dtype} on {value.device}"
        rule = "key and value must share a device and a floating dtype of 16, 32 or 64 bits (SPEC 9.1)"
        raise refuse(KIVShapeError, rule, got, "Convert them before the append.")
    batch, heads, tokens, width = key.shape
    shape = StoreShape(batch, heads, width, value.shape[3], key.dtype, key.device)
    if fixed is not None and shape != fixed:
        rule = f"the store was fixed by its first append to {tuple(fixed)} (SPEC 9.1)"
        raise refuse(KIVShapeError, rule, tuple(shape), "Reset the store first.")
    if valid is not None and (
        valid.dtype != torch.bool or tuple(valid.shape) != (batch, tokens) or valid.device != key.device
    ):
        got = f"{valid.dtype} {list(valid.shape)} on {valid.device}"
        rule = f"valid must be bool {[batch, tokens]} on {key.device} (SPEC 2.4)"
        raise refuse(KIVShapeError, rule, got, "Slice the attention mask to the new tokens.")
    return shape


def check_finite(what: str, tensor: torch.Tensor, valid: torch.Tensor | None) -> None:
    """Refuse NaN and infinity in ``[B, heads, n, D]`` at valid positions, bool ``[B, n]`` (SPEC 2.5).

    Raises
    ------
    KIVNonFiniteError
    """
    finite = torch.isfinite(tensor).all(dim=3).all(dim=1)  # [B, n]
    if valid is not None:
        finite = finite | ~valid
    if not bool(finite.all()):
        sequence, token = (int(i) for i in (~finite).nonzero()[0])
        got = f"NaN or infinity in sequence {sequence}, token {token} of the call"
        rule = f"every {what} at a valid position must be finite (SPEC 2.5)"
        raise refuse(KIVNonFiniteError, rule, got, "Use a wider dtype, or look for the overflow in the model.")


def check_query(query: torch.Tensor, shape: StoreShape | None, tokens: int) -> StoreShape:
    """Check a query against the store's shape and the number of tokens last appended, and return that shape.

    Raises
    ------
    KIVUsageError
        Nothing was appended since the last crop, or another number of tokens (SPEC 9.1).
    KIVShapeError
    """
    if shape is None or tokens == 0:
        rule = "attend must follow an append (SPEC 9.1)"
        raise refuse(KIVUsageError, rule, "no tokens appended since the last crop", "Append the queries' own tokens.")
    check_tensor("query", query)
    good = query.ndim == 4 and query.shape[0] == shape.batch and query.shape[3] == shape.key_width
    if not good or query.shape[1] == 0 or query.shape[1] % shape.heads or query.dtype != shape.dtype:
        rule = f"query must be [{shape.batch}, multiple of {shape.heads}, TQ, {shape.key_width}] {shape.dtype}"
        got = f"{list(query.shape)} {query.dtype}"
        raise refuse(KIVShapeError, f"{rule} (SPEC 9.1)", got, "Match the keys of this layer.")
    if query.device != shape.device:
        raise refuse(KIVShapeError, f"query must be on {shape.device} (SPEC 9.1)", query.device, "Move it there.")
    if query.shape[2] != tokens:
        rule = "attend needs the queries of exactly the tokens last appended (SPEC 9.1)"
        raise refuse(KIVUsageError, rule, f"TQ = {query.shape[2]}, {tokens} appended", "Append and attend in step.")
    return shape


def check_modifiers(
    query: torch.Tensor, scale: float, softcap: float | None, sink_logits: torch.Tensor | None, bound: bool = False
) -> torch.Tensor | None:
    """Check the arguments of SPEC 8 and `bound`, and return the sink logits as ``[B, HQ, TQ]``, or None.

    Raises
    ------
    KIVUsageError
        `scale`, `softcap` or `bound` is of no use.
    KIVShapeError
        `sink_logits` is.
    """
    for name, number in (("scale", scale), ("softcap", softcap)):
        if (number is not None or name == "scale") and not _positive(number):
            raise refuse(KIVUsageError, f"{name} must be a finite number > 0", repr(number), "Take the model's own.")
    if not isinstance(bound, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise refuse(KIVUsageError, "bound must be True or False", repr(bound), "Say which.")
    if sink_logits is None:
        return None
    check_tensor("sink_logits", sink_logits)
    if not sink_logits.is_floating_point() or sink_logits.device != query.device:
        rule = f"sink_logits must be floating on {query.device} (SPEC 8.2)"
        raise refuse(KIVShapeError, rule, f"{sink_logits.dtype} on {sink_logits.device}", "Convert the model's sinks.")
    batch, heads, tokens, _ = query.shape
    if tuple(sink_logits.shape) == (heads,):
        sink_logits = sink_logits[None, :, None].expand(batch, heads, tokens)
    if tuple(sink_logits.shape) != (batch, heads, tokens):
        rule = f"sink_logits must be [{heads}] or [{batch}, {heads}, {tokens}] (SPEC 8.2)"
        raise refuse(KIVShapeError, rule, list(sink_logits.shape), "Reshape the model's sinks.")
    return sink_logits


def check_remaining(tokens: int | None) -> int | None:
    """Check how many tokens of a prompt are said to follow a call, and return the number or None (SPEC 7.6).

    Raises
    ------
    KIVUsageError
    """
    if tokens is None:
        return None
    tokens = integer("remaining_prompt_tokens", tokens)
    if tokens < 0:
        rule = "remaining_prompt_tokens must be 0 or more (SPEC 7.6)"
        raise refuse(KIVUsageError, rule, tokens, "Pass 0 with the last tokens of a prompt.")
    return tokens


def check_rows(rows: torch.Tensor, batch: int, same_size: bool) -> list[int]:
    """Check the sequence numbers of `reorder` and `select`, and return them as integers (SPEC 9.3).

    Raises
    ------
    KIVUsageError
    """
    at = cast("list[int]", rows.tolist()) if rows.ndim == 1 and rows.dtype == torch.int64 else []
    if not at or min(at) < 0 or max(at) >= batch or (same_size and len(at) != batch):
        size = f"[{batch}]" if same_size else "[1 or more]"
        rule = f"rows must be int64 {size} with values in 0..{batch - 1} (SPEC 9.3)"
        raise refuse(KIVUsageError, rule, f"{rows.tolist()} ({rows.dtype})", "Count sequences from 0.")
    return at
