"""Estimates of cold tokens by their codes, a chunk of pages at a time (SPEC 4.2, 4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch

from ..shape import aligned
from .arguments import Queries
from .page_index import PageIndex
from .ranking import group_scores

LEVELS = 16
"""Codes of four bits."""

PARTS = 8
"""Kept estimates that are many are looked at in so many parts, for which there is memory beside them."""

NIBBLES = 0x0F0F0F0F
"""The lower halves of four bytes."""

MOST_WEIGHT = 2.0**13

SMALLEST, LARGEST = 2.0**-114, 2.0**127
"""The unit is chosen as if the largest product lay between these: it is at least 2^-126, at most 2^115."""


@dataclass(frozen=True)
class Chunk:
    """Pages ``[first, last)``: the cold tokens ``[start, stop)``."""

    first: int
    last: int
    start: int
    stop: int


def pieces(tensor: torch.Tensor, size: int, dim: int = 0) -> Sequence[torch.Tensor]:
    """Cut what often is small enough as it is."""
    return (tensor,) if tensor.shape[dim] <= size else torch.split(tensor, size, dim=dim)


def joined(parts: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
    """Concatenate parts, which often are one."""
    return parts[0] if len(parts) == 1 else torch.cat([*parts], dim=dim)


def whole_unit(most: torch.Tensor) -> torch.Tensor:
    """Make the units of weights whose largest magnitudes before rounding are `most`, which is overwritten."""
    most = most.clamp_(SMALLEST, LARGEST)
    return most.div_(torch.frexp(most).mantissa.mul_(MOST_WEIGHT))  # a power of two, exactly


class Estimates:
    """Estimates of the tokens of some pages, for the members of a block, or of blocks that are answered together.

    Parameters
    ----------
    index : PageIndex
    queries : Queries
        In the dtype in which to compute.
    chunk_bytes, kept_bytes : int
        Codes are widened `chunk_bytes` at a time; estimates that take no more than `kept_bytes` are computed once.

    Attributes
    ----------
    chunks : list of Chunk
        One of everything where the estimates are few.
    """

    def __init__(self, index: PageIndex, queries: Queries, chunk_bytes: int, kept_bytes: int) -> None:
        self.index, self.queries = index, queries
        self._members, size = queries.scaled, index.page_tokens
        heads, members, _ = self._members.shape
        itemsize, self._heads = self._members.dtype.itemsize, index.codes.tensor.shape[1]
        self._step = max(1, chunk_bytes // (2 * index.codes.record_bytes * itemsize))  # pages of one sequence
        page = heads * members * size * itemsize
        self._keep, self._kept = page * index.pages <= kept_bytes, dict[int, torch.Tensor]()  # by first page
        # What is made of estimates takes as much memory again.
        step = max(chunk_bytes, kept_bytes // PARTS) // page if self._keep else self._step * self._heads // heads
        step = max(1, step)
        stops = [min(first + step, index.pages) for first in range(0, index.pages, step)]
        self.chunks = [Chunk(a, b, a * size, b * size) for a, b in zip([0, *stops], stops, strict=False)]

    def of(self, chunk: Chunk) -> torch.Tensor:
        """Return estimates ``[H, M, tokens of the chunk]``, minus infinity where a token is invalid."""
        out = self._kept.get(chunk.first)
        if out is not None:
            return out
        index, terms, (heads, _, width) = self.index, self.index.terms(chunk.first, chunk.last), self._members.shape
        pages, own = chunk.last - chunk.first, self._heads
        if heads == own:
            asked = self._members.repeat(pages, 1, 1)  # [n * H, M, D]
        else:  # blocks have the codes of a head in common, and are more members of it here: [sequences * n * H, M, D]
            asked = self._members.view(index.sequences, 1, own, -1, width).repeat(1, pages, 1, 1, 1).flatten(0, 2)
        members = asked.shape[1]
        lowest = torch.bmm(asked, aligned(terms.base))  # the score of a key of codes 0
        if terms.channels is not None:
            asked = asked.gather(2, terms.channels.long().expand(-1, members, -1))
        weights = asked.mul_(terms.step)
        unit = whole_unit(cast("torch.Tensor", torch.linalg.vector_norm(weights, torch.inf, dim=2, keepdim=True)))
        weights = weights.div_(unit).round_().clamp_(-MOST_WEIGHT, MOST_WEIGHT).mul_(unit)
        step = self._step * own
        parts = zip(pieces(lowest, step), pieces(weights, step), pieces(terms.codes, self._step), strict=True)
        parts = [torch.baddbmm(low, weight, self._numbers(packed)) for low, weight, packed in parts]
        out = joined(parts, 0).view(-1, pages, own, members, index.page_tokens)
        out = out.permute(0, 2, 3, 1, 4).reshape(heads, self._members.shape[1], -1)
        if index.unseen is not None:
            out.masked_fill_(index.unseen[chunk.start : chunk.stop], -torch.inf)
        if self._keep:
            self._kept[chunk.first] = out
        return out

    def _numbers(self, words: torch.Tensor) -> torch.Tensor:
        """Return codes of n pages as numbers ``[n * H, 2 W, P]``, from words ``[n, H, P / 16, 16, W / 4]``."""
        tokens = words.shape[2] * words.shape[3]
        halves = torch.cat([words, words >> 4], dim=4).bitwise_and_(NIBBLES).view(torch.uint8)
        codes = halves.view(-1, tokens, 8 * words.shape[4]).to(self._members.dtype)
        return (codes if tokens == self.index.page_tokens else codes[:, : self.index.page_tokens]).transpose(1, 2)

    @cached_property
    def scores(self) -> torch.Tensor:
        """The group score of every token, ``[H, N * P]``; minus infinity where it is invalid (SPEC 4.3)."""
        group, most = self.index.group, None
        if group == "exp_sum" and len(self.chunks) > 1:
            most = torch.stack([self.of(chunk).amax(dim=2) for chunk in self.chunks]).amax(dim=0)[:, :, None]
        scores = joined([group_scores(self.of(chunk), group, most) for chunk in self.chunks], 1)
        if self.index.unseen is not None:
            scores.masked_fill_(self.index.unseen, -torch.inf)
        return scores
