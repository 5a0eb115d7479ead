"""Which fused attention attends tiles: the first whose numbers are right, under a name that is told.

Each that may serve is tried once for each kind of calls, against the same sums written out on the host. Where none
serves, the logits are written out.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

from ..shape import Shape
from .fused import CPU, WAYS, Kind, Way

WRITTEN_OUT = "logits written out"

NONE_HERE = (RuntimeError, AttributeError, TypeError, ValueError, ImportError)
"""In all these ways torch says that it has no such operation for a device, a dtype or a shape."""


class Choice(NamedTuple):
    """The way for a kind of calls, None if there is none, and why others were not taken."""

    way: Way | None
    refused: dict[str, str]


@cache
def choose(kind: Kind) -> Choice:
    """Choose the way for calls of a kind, by trial at the first."""
    refused: dict[str, str] = {}
    if kind.device.type == "cpu":
        return Choice(CPU if CPU.serves(kind) else None, refused)
    for way in WAYS.get(kind.device.type, ()):
        if way.serves(kind):
            reason = _why_not(way, kind)
            if reason is None:
                return Choice(way, refused)
            refused[way.name] = reason
    return Choice(None, refused)


def told(shape: Shape) -> str:
    """Say what attends exactly in such stores, without a soft cap, and in which dtype: "flash (bfloat16)"."""
    dtype = shape.compute if shape.device.type == "cpu" else shape.dtype
    way = choose(Kind(shape.device, dtype, shape.key_width, shape.value_width)).way
    return f"{WRITTEN_OUT if way is None else way.name} ({str(dtype).removeprefix('torch.')})"


def _why_not(way: Way, kind: Kind) -> str | None:
    """Say why a way does not serve, from its own words or its numbers; None if it does."""
    try:
        errors = [_errors(way, kind, causal) for causal in (False, True)]
    except torch.OutOfMemoryError:
        raise
    except NONE_HERE as error:
        said = str(error).strip().partition("\n")[0].partition(". ")[0]
        return f"{type(error).__name__}: {said}"
    # What rounding of weights and output leaves (SPEC 1.2); scores and sums are those of float32.
    most = max(4 * torch.finfo(kind.dtype).eps, 2.0**-14)
    output, mass = (max(pair) for pair in zip(*errors, strict=True))
    if output <= most and mass <= 2.0**-15:
        return None
    return f"its output is off by {output:.2g}, its log-sum-exp by {mass:.2g}"


def _errors(way: Way, kind: Kind, causal: bool) -> tuple[float, float]:
    """Compare a way with the sums written out: the largest errors of output and log-sum-exp; NaN counts as infinite."""
    heads, groups, count = 2, 2, 72
    tokens = count if causal else 200
    shapes = (
        (heads, groups, count, kind.key_width),
        (heads, 1, tokens, kind.key_width),
        (heads, 1, tokens, kind.value_width),
    )
    parts = [_wave(shape, n + 1).to(kind.dtype) for n, shape in enumerate(shapes)]
    query, key, value = (part.to(kind.device, non_blocking=True) for part in parts)
    scale = kind.key_width**-0.5
    if causal:
        key, value = key.expand(-1, groups, -1, -1), value.expand(-1, groups, -1, -1)
    else:
        query = query.flatten(1, 2)[:, None]
    output, mass = way(query, key, value, causal, scale, kind.softcap)
    wide, keys, values = (part.double() for part in parts)
    logits = scale * wide @ keys.transpose(2, 3)  # [H, G, TQ, K]
    if kind.softcap is not None:
        logits = torch.tanh(logits / kind.softcap) * kind.softcap
    if causal:
        logits.masked_fill_(torch.ones(count, tokens, dtype=torch.bool, device="cpu").triu(1), -torch.inf)
    expected = torch.softmax(logits, dim=3) @ values, logits.logsumexp(dim=3)
    found = output.cpu().double().view(expected[0].shape), mass.cpu().double().view(expected[1].shape)
    first, second = ((a - b).abs().nan_to_num(torch.inf).max().item() for a, b in zip(found, expected, strict=True))
    return first, second


def _wave(shape: tuple[int, ...], number: int) -> torch.Tensor:
    """Make numbers of about the size one, without a generator's state."""
    at = torch.arange(torch.Size(shape).numel(), dtype=torch.float32, device="cpu")
    return torch.sin(at * at * (0.7 + number / 10) % 6.25).mul_(1.4).view(shape)
