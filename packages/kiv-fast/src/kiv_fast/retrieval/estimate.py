"""Scores of all cold tokens from their codes, some pages at a time (SPEC 4.2 to 4.4)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from ..cold import Cold
from ..index.index import LEVELS
from ..pages.block_table import Row
from ..shape import aligned
from .ranking import group_scores, top_set


@dataclass(frozen=True)
class Chunk:
    """Consecutive pages: the cold tokens ``[start, stop)``."""

    first: int  # page
    last: int
    start: int
    stop: int


class Estimates:
    """Estimates of the tokens of some pages, for the members of a block.

    Parameters
    ----------
    cold, row : where the pages are
    pages : int
        N.
    members : [H, M, D]
        Queries times scale, in the dtype in which to compute.
    unseen : bool [N * P], or None
        Tokens that are not valid.
    keep : bool
        Whether they will be asked for again: if `Tuning.kept_bytes` and the device have room, none is computed twice.
    """

    def __init__(
        self, cold: Cold, row: Row, pages: int, members: torch.Tensor, unseen: torch.Tensor | None, keep: bool
    ) -> None:
        assert cold.index is not None, "exact mode estimates nothing"
        self._cold, self._row, self._index, self._members, self._unseen = cold, row, cold.index, members, unseen
        size = cold.config.page_tokens
        wide = cold.index.codes.tensor.shape[3] * members.dtype.itemsize * cold.shape.heads * size
        step = max(1, cold.tuning.chunk_bytes // wide)
        stops = [min(first + step, pages) for first in range(0, pages, step)]
        self.chunks = [Chunk(a, b, a * size, b * size) for a, b in zip([0, *stops], stops, strict=False)]
        most = members.shape[0] * members.shape[1] * pages * size * members.dtype.itemsize
        self._kept: dict[int, torch.Tensor] | None = None
        if keep and most <= cold.tuning.kept_bytes:
            with cold.account.changing():
                self._kept = {} if cold.scratch.lend(most) else None

    def of(self, chunk: Chunk) -> torch.Tensor:
        """Estimates ``[H, M, tokens of the chunk]``, minus infinity where a token is invalid."""
        if self._kept is not None and chunk.first in self._kept:
            return self._kept[chunk.first]
        members, size = self._members, self._cold.config.page_tokens
        codes, channels, step, base = self._records(chunk)
        heads, count, width = members.shape
        pages, half = codes.shape[0], codes.shape[3]
        asked = members.expand(pages, heads, count, width).gather(
            3, channels.long()[:, :, None].expand(pages, heads, count, -1)
        )
        asked = asked.mul_(step[:, :, None])  # [n, H, M, 2 W]
        # Products of keys by queries, both halves of the codes into one sum, which begins with what base adds.
        sums = (members @ base.permute(1, 2, 0)).permute(2, 0, 1).reshape(-1, count, 1).expand(-1, -1, size)
        for part, levels in enumerate((codes & (LEVELS - 1), codes >> 4)):
            wide = self._cold.scratch.convert("codes", levels, members.dtype).flatten(0, 1)  # [n * H, P, W]
            mine = asked[..., part * half : (part + 1) * half].flatten(0, 1)
            sums = torch.baddbmm(sums, mine, wide.transpose(1, 2))
        out = sums.view(pages, heads, count, size).permute(1, 2, 0, 3).contiguous()
        out = out.view(heads, count, pages * size)
        if self._unseen is not None:
            out.masked_fill_(self._unseen[chunk.start : chunk.stop], -torch.inf)
        if self._kept is not None:
            self._kept[chunk.first] = out
        return out

    def release(self) -> None:
        """Give the room of what was kept back: nothing more is asked for."""
        if self._kept is not None:
            with self._cold.account.changing():
                self._kept = None
                self._cold.scratch.lend(0)

    def error(self, chunk: Chunk) -> torch.Tensor:
        """What no score of a page exceeds its estimate by, ``[H, M, n]``, rounding included (SPEC 6.2)."""
        members, (error, size) = self._members.abs(), self._distances(chunk)
        room = (4 * members.shape[2] + 64) * torch.finfo(members.dtype).eps
        return members @ (error + room * (size + error)).permute(1, 2, 0)

    def reach(self, chunk: Chunk) -> torch.Tensor:
        """What no number of a key exceeds by its magnitude, ``[H, D]``."""
        error, size = self._distances(chunk)
        return (error + size).amax(dim=0)

    def _distances(self, chunk: Chunk) -> tuple[torch.Tensor, torch.Tensor]:
        """Of keys from approximate keys, and of those from zero, ``[n, H, D]``: no page's are larger."""
        _, channels, step, base = self._records(chunk)
        error = self._cold.records(self._index.error, self._row, chunk.first, chunk.last)
        error = self._cold.transfer.upload(error).to(self._members.dtype)
        return error, base.abs().scatter_add_(2, channels.long(), LEVELS * step)

    def _records(self, chunk: Chunk) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Codes, channels, step and base of a chunk's pages, the latter two in the dtype in which to compute."""
        tables = self._index.codes, self._index.channels, self._index.step, self._index.base
        codes, channels, step, base = (
            self._cold.records(table, self._row, chunk.first, chunk.last) for table in tables
        )
        dtype = self._members.dtype
        return codes, channels, aligned(step.to(dtype)), aligned(base.to(dtype))

    @cached_property
    def scores(self) -> torch.Tensor:
        """The group score of every token, ``[H, N * P]``; minus infinity where it is invalid (SPEC 4.3)."""
        group, most = self._cold.config.group, None
        if group == "exp_sum":
            parts = [self.of(chunk).amax(dim=2, keepdim=True) for chunk in self.chunks]
            most = torch.cat(parts, dim=2).amax(dim=2, keepdim=True)
        scores = torch.cat([group_scores(self.of(chunk), group, most) for chunk in self.chunks], dim=1)
        if self._unseen is not None:
            scores.masked_fill_(self._unseen, -torch.inf)
        return scores

    def best(self, n: int) -> torch.Tensor:
        """The `n` best tokens, int64 ``[H, n]``, ascending: no more than are valid."""
        return top_set(self.scores, n)
