"""Tokens to feed a store with, made from a short recipe: small to draw, to shrink and to print."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

EXACT_KINDS = ("integers", "bits", "few_integers")
"""Small integers: every score is exact in float32 (SPEC 11.1)."""

FLOAT_KINDS = (
    "gaussian",
    "few",
    "near_ties",
    "huge",
    "tiny",
    "denormal",
    "signed_zeros",
    "pages",
    "needle",
    "spiky",
    "sixteenths",
)
"""Whatever a model may produce, and worse."""

VALUES = ("gaussian", "distinct", "unlike", "infinite")
"""Kinds of values. "distinct": every cell holds a number of its own; "unlike": tokens of very different sizes, so that
a small difference of large sums is not exact; "infinite": one cell in twenty is NaN or infinite."""


@dataclass(frozen=True)
class Shape:
    """Shapes and dtype of a layer: G = `groups` query heads for each of H = `heads` KV heads."""

    batch: int = 1
    heads: int = 1
    groups: int = 1
    width: int = 4
    value_width: int = 4
    dtype: torch.dtype = torch.float32


class Tokens(NamedTuple):
    """Keys ``[B, H, n, D]``, values ``[B, H, n, DV]``, queries ``[B, HQ, n, D]``, validity bool ``[B, n]`` or None."""

    key: torch.Tensor
    value: torch.Tensor
    query: torch.Tensor
    valid: torch.Tensor | None = None

    def slice(self, start: int, stop: int) -> Tokens:
        """Return tokens ``[start, stop)``."""
        valid = None if self.valid is None else self.valid[:, start:stop]
        return Tokens(self.key[:, :, start:stop], self.value[:, :, start:stop], self.query[:, :, start:stop], valid)


@dataclass(frozen=True)
class Recipe:
    """How to make n tokens; the same recipe and shape make the same tokens."""

    kind: str = "gaussian"
    seed: int = 0
    queries: str = "same"  # "same": as the keys; "gaussian"; "opposite": against the mean of the keys
    values: str = "gaussian"  # of `VALUES`

    def make(self, shape: Shape, n: int) -> Tokens:
        """Return the tokens, valid all."""
        generator = torch.Generator().manual_seed(self.seed)
        b, h, g, d, dv = shape.batch, shape.heads, shape.groups, shape.width, shape.value_width
        key = _rows(self.kind, (b, h, n, d), generator, shape.dtype)
        same = self.queries == "same" or self.kind in (*EXACT_KINDS, "cancelling")
        if same:
            kind = "gaussian" if self.kind in ("needle", "pages") else self.kind
            query = _rows(kind, (b, h * g, n, d), generator, shape.dtype)
        else:
            query = torch.randn(b, h * g, n, d, generator=generator)
        if self.kind == "cancelling":
            query[..., -1] *= -1
        if self.queries == "opposite" and not same:
            query = query * 0.1 - key.float().mean(dim=2, keepdim=True).repeat_interleave(g, dim=1)
        if self.values == "distinct":
            value = torch.arange(b * h * n * dv).reshape(b, h, n, dv) % 251 - 125 + self.seed % 7
        else:
            value = torch.randn(b, h, n, dv, generator=generator)
        if self.values == "unlike":
            most = 3 if shape.dtype == torch.float16 else 12  # powers of ten
            value *= 10.0 ** torch.randint(-most, most + 1, (n, 1), generator=generator)
        elif self.values == "infinite":
            value = with_bad_values(value, self.seed)
        return Tokens(key.to(shape.dtype), value.to(shape.dtype), query.to(shape.dtype))


def _rows(kind: str, size: tuple[int, int, int, int], generator: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
    """Make rows ``[B, heads, n, D]`` in float64, still to be rounded to `dtype`."""
    normal = torch.randn(size, generator=generator, dtype=torch.float64)
    n = size[2]
    if kind == "integers":
        return torch.randint(-3, 4, size, generator=generator).double()
    if kind == "bits":
        return torch.randint(0, 2, size, generator=generator).double()
    if kind in ("few", "few_integers"):
        # Few distinct rows: ties between tokens, and between pages.
        stock = normal[:, :, :3] if kind == "few" else normal[:, :, :3].round()
        return stock[:, :, torch.randint(0, stock.shape[2], (n,), generator=generator)]
    if kind == "near_ties":
        # One row, its copies an ulp or so apart.
        return normal[:, :, :1] * (1 + normal * torch.finfo(dtype).eps)
    if kind == "huge":
        return normal * (1e4 if dtype == torch.float16 else 1e9)
    if kind == "tiny":
        return normal * (1e-3 if dtype == torch.float16 else 1e-12)
    if kind == "denormal":
        return normal * torch.finfo(dtype).tiny * 0.1
    if kind == "cancelling":
        # The products of two channels are so large that, until they cancel, what the others add is lost in float64.
        normal[..., 0] = normal[..., -1] = 2.0 ** (15 if dtype == torch.float16 else 28)
        return normal
    if kind == "signed_zeros":
        return torch.randint(-1, 2, size, generator=generator) * torch.where(normal > 0, 0.0, -1.0)
    if kind == "pages":
        # The centre drifts, as that of real keys does.
        return normal * 0.3 + torch.cumsum(normal, dim=2) / math.sqrt(n)
    if kind == "needle":
        # Most rows point one way, one row in five the other way and further: a page's mean hides it.
        away = torch.rand(n, generator=generator) < 0.2
        return normal * 0.05 + torch.where(away, 3.0, -1.0)[:, None]
    if kind == "sixteenths":
        # Steps of codes of four bits, or all but: what decides a code is how its operations round.
        steps = torch.randint(0, 17, size, generator=generator) + (torch.rand(size, generator=generator) < 0.3) * 1e-7
        return 0.1 + 0.3 * steps / 16
    if kind == "spiky":
        # A few channels carry nearly all of the norm.
        return normal * torch.where(torch.rand(size[3], generator=generator) < 0.2, 20.0, 0.2)
    return normal


MASKS = ("none", "left", "right", "inside", "page", "ragged", "all")


def mask(kind: str, batch: int, tokens: int, seed: int) -> torch.Tensor | None:
    """Return validity bool ``[B, T]``: padding on the left, right, inside, over whole pages, here and there, all.

    "islands", for scenarios that need it alone: most positions, in a long text.
    """
    if kind == "none":
        return None
    generator = torch.Generator().manual_seed(seed)
    if kind == "ragged":
        return torch.rand(batch, tokens, generator=generator) < 0.6
    if kind == "all":
        return torch.arange(batch)[:, None].expand(batch, tokens) % 2 == seed % 2
    if kind == "islands":
        # The last positions before each multiple of 64 (SPEC 3.2), and all after the last of them.
        place = torch.arange(tokens)
        return ((place % 64 >= 64 - seed) | (place >= tokens - tokens % 64)).expand(batch, tokens)
    start = torch.zeros(batch, 1, dtype=torch.int64)
    stop = torch.randint(0, tokens + 1, (batch, 1), generator=generator)
    if kind == "right":
        start, stop = stop, torch.full_like(stop, tokens)
    if kind in ("inside", "page"):
        start = torch.randint(0, tokens, (batch, 1), generator=generator)
        stop = start + (1 + seed % 3 if kind == "inside" else tokens // 2)
    place = torch.arange(tokens)
    return ~((place >= start) & (place < stop))


def poison(tokens: Tokens) -> Tokens:
    """Put NaN in every cell that must never be read: key, value and query at invalid positions (SPEC 2.4)."""
    if tokens.valid is None:
        return tokens
    hole = ~tokens.valid[:, None, :, None]
    key, value, query = (x.masked_fill(hole, math.nan) for x in (tokens.key, tokens.value, tokens.query))
    return Tokens(key, value, query, tokens.valid)


def with_bad_values(value: torch.Tensor, seed: int) -> torch.Tensor:
    """Return the same values, one cell in twenty NaN or infinite."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(value.shape, generator=generator)
    for bad, limit in ((math.nan, 0.02), (math.inf, 0.04), (-math.inf, 0.05)):
        value = value.masked_fill((draw < limit) & (draw >= limit - 0.02), bad)
    return value
