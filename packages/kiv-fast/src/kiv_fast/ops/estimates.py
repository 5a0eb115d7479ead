"""Estimates of cold tokens by their codes, a chunk of pages at a time (SPEC 4.2, 4.3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

from ..shape import aligned
from .arguments import PageIndex, Queries
from .ranking import group_scores

LEVELS = 16
"""Codes of four bits."""

BITS = 13
"""Of the largest weight."""


@dataclass(frozen=True)
class Chunk:
    """Pages ``[first, last)``: the cold tokens ``[start, stop)``."""

    first: int
    last: int
    start: int
    stop: int


def joined(parts: list[torch.Tensor], dim: int) -> torch.Tensor:
    """Concatenate what chunks have, which often are one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)


def whole_unit(most: torch.Tensor) -> torch.Tensor:
    """Make the units of weights whose largest magnitudes before rounding are `most`, which is overwritten."""
    # A power of two, by an exact division: NaN, and so the least unit, where all is 0.
    return most.div_(torch.frexp(most).mantissa).mul_(2.0**-BITS).nan_to_num_(0.0).clamp_(2.0**-126, 2.0**115)


class Estimates:
    """Estimates of the tokens of some pages, for the members of a block.

    Parameters
    ----------
    index : PageIndex
    queries : Queries
        In the dtype in which to compute.
    chunk_bytes, kept_bytes : int
        Codes are widened so many bytes at a time; estimates that take no more than the other are computed once.
    """

    def __init__(self, index: PageIndex, queries: Queries, chunk_bytes: int, kept_bytes: int) -> None:
        self.index, self.queries = index, queries
        self._members = queries.members * queries.scale
        size, codes = index.page_tokens, index.codes.tensor
        wide = 2 * codes[0].numel() * self._members.dtype.itemsize
        step = max(1, chunk_bytes // wide)
        stops = [min(first + step, index.pages) for first in range(0, index.pages, step)]
        self.chunks = [Chunk(a, b, a * size, b * size) for a, b in zip([0, *stops], stops, strict=False)]
        most = self._members.shape[0] * self._members.shape[1] * index.tokens * self._members.dtype.itemsize
        self._kept: dict[int, torch.Tensor] | None = {} if most <= kept_bytes else None

    def of(self, chunk: Chunk) -> torch.Tensor:
        """Estimates ``[H, M, tokens of the chunk]``, minus infinity where a token is invalid."""
        if self._kept is not None and chunk.first in self._kept:
            return self._kept[chunk.first]
        index, members, size = self.index, self._members, self.index.page_tokens
        channels, step, base = self._records(chunk)
        pages, (heads, count, width) = step.shape[0], members.shape
        asked = members.expand(pages, heads, count, width).gather(
            3, channels.long()[:, :, None].expand(pages, heads, count, -1)
        )
        asked = asked.mul_(step[:, :, None])  # [n, H, M, 2 W]
        unit = whole_unit(asked.abs().amax(dim=3, keepdim=True))
        asked = asked.div_(unit).round_().clamp_(-(2.0**BITS), 2.0**BITS)
        wide = self._codes(chunk, members.dtype)
        out = torch.bmm(asked.flatten(0, 1), wide.flatten(0, 1).transpose(1, 2)).view(pages, heads, count, size)
        out = out.mul_(unit).add_(torch.bmm(members, base.permute(1, 2, 0)).permute(2, 0, 1)[..., None])
        out = out.permute(1, 2, 0, 3).reshape(heads, count, pages * size)
        if index.unseen is not None:
            out.masked_fill_(index.unseen[chunk.start : chunk.stop], -torch.inf)
        if self._kept is not None:
            self._kept[chunk.first] = out
        return out

    def _codes(self, chunk: Chunk, dtype: torch.dtype) -> torch.Tensor:
        """Codes of a chunk ``[n, H, P, 2 W]`` as numbers."""
        packed = self.index.records(self.index.codes, chunk.first, chunk.last)  # [n, H, P / 16, W / 4, 16, 4]
        packed = packed.transpose(3, 4).flatten(4, 5).flatten(2, 3)[:, :, : self.index.page_tokens]
        return torch.cat([packed & (LEVELS - 1), packed >> 4], dim=3).to(dtype)

    def all(self) -> Iterator[tuple[Chunk, torch.Tensor]]:
        """Every chunk and its estimates."""
        return ((chunk, self.of(chunk)) for chunk in self.chunks)

    def _records(self, chunk: Chunk) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Channels, step and base of a chunk's pages, the latter two in the dtype in which to compute."""
        index, dtype = self.index, self._members.dtype
        channels, step, base = (
            index.records(table, chunk.first, chunk.last) for table in (index.channels, index.step, index.base)
        )
        return channels, aligned(step.to(dtype)), aligned(base.to(dtype))

    @cached_property
    def scores(self) -> torch.Tensor:
        """The group score of every token, ``[H, N * P]``; minus infinity where it is invalid (SPEC 4.3)."""
        group, most = self.index.group, None
        if group == "exp_sum":
            parts = [part.amax(dim=2, keepdim=True) for _, part in self.all()]
            most = joined(parts, 2).amax(dim=2, keepdim=True)
        scores = joined([group_scores(part, group, most) for _, part in self.all()], 1)
        if self.index.unseen is not None:
            scores.masked_fill_(self.index.unseen, -torch.inf)
        return scores
