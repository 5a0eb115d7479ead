"""What a step leaves to those who asked: tensors that lie in one piece of memory, so that one copy is a copy of all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from ..decoding import Chosen, Decode, Decoded
from .sizes import INT, Sizes

ALIGNED = 16
"""Bytes by which the address of every tensor can be divided, as the compiled kernels expect."""


class Results(NamedTuple):
    """All of it on the device; None where a step has no such thing."""

    out: torch.Tensor  # [B, HQ, 1, DV]
    share: torch.Tensor  # float32 [B, HQ], estimated shares of mass
    hits: torch.Tensor | None  # int32 [B, H, 2], keys and values that were kept
    at: torch.Tensor | None  # int32 [B, H, most], candidates
    chosen: torch.Tensor | None  # int32 [B, H, R], which of these are selected
    wide: torch.Tensor | None  # int32 [B, H], whether a head took more than C

    def decoded(self, asked: Decode, sizes: Sizes) -> Decoded:
        """Return what a step has found."""
        out, chosen = self.out.to(asked.query.dtype), None
        if self.at is not None and self.chosen is not None and self.wide is not None:
            most = min(sizes.most, asked.pages * sizes.page_tokens)
            each = zip(self.at[:, :, :most], self.chosen, self.wide, strict=True)
            chosen = tuple(Chosen(*row, sizes.candidates) for row in each)
        return Decoded(out, self.share, chosen, self.hits)


def results_bytes(sizes: Sizes, wide: bool) -> int:
    """Count the bytes of a step's results."""
    return sum(_bytes(*part) for part in _parts(sizes, wide) if part is not None)


def graph_bytes(sizes: Sizes, wide: bool) -> int:
    """Count the bytes that stay for a graph of a step: a query, learned sinks at most, and results."""
    members = sizes.batch * sizes.heads * sizes.groups
    return members * (sizes.key_width * sizes.dtype.itemsize + 4) + results_bytes(sizes, wide)


def results_in(memory: torch.Tensor, sizes: Sizes, wide: bool) -> Results:
    """View memory, uint8 of as many bytes, as results; `wide` where the output is float32."""
    tensors, start = list[torch.Tensor | None](), 0
    for part in _parts(sizes, wide):
        if part is None:
            tensors.append(None)
            continue
        shape, dtype = part
        stop = start + math.prod(shape) * dtype.itemsize
        tensors.append(memory[start:stop].view(dtype).view(shape))
        start += _bytes(*part)
    return Results(*tensors)  # pyright: ignore[reportArgumentType] - the first two are never None


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return -(-math.prod(shape) * dtype.itemsize // ALIGNED) * ALIGNED


def _parts(sizes: Sizes, wide: bool) -> Iterator[tuple[tuple[int, ...], torch.dtype] | None]:
    """Yield shapes and dtypes, in the order of `Results`."""
    lanes, members = (sizes.batch, sizes.heads), sizes.heads * sizes.groups
    yield (sizes.batch, members, 1, sizes.value_width), torch.float32 if wide else sizes.dtype
    yield (sizes.batch, members), torch.float32
    yield ((*lanes, 2), INT) if sizes.keeps else None
    yield ((*lanes, sizes.most), INT) if sizes.retrieves else None
    yield ((*lanes, sizes.selected), INT) if sizes.retrieves else None
    yield (lanes, INT) if sizes.retrieves else None
