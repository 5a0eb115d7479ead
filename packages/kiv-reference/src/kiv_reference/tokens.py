"""The state of a store: its tokens, sampled queries, and the index of what is cold (SPEC 2.1)."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .checks import StoreShape
from .growing import Growing
from .index import SAMPLE_TOKENS, SAMPLES, PageIndex, compute_dtype, index_page, query_weights
from .partition import Partition, partition
from .report import TierBytes
from .view import HeadView

if TYPE_CHECKING:
    from .config import KIVConfig


@dataclass
class Tokens:
    """Keys ``[B, H, T, D]``, values ``[B, H, T, DV]``, validity bool ``[B, T]``, and what is computed from them.

    `sampled` has a row for each multiple of `SAMPLE_TOKENS` that an attend has reached: the largest |q| of the position
    before it, over the query heads of a KV head; NaN where it was not sampled (SPEC 3.2). `index` has the fields of
    `PageIndex`, codes a row for each cold token, the others a row for each page; it may cover fewer pages than the
    partition has until `index_pages` is called. `pending` counts the tokens of the last append, if no crop came after.
    """

    key: Growing
    value: Growing
    valid: torch.Tensor
    sampled: Growing
    index: list[Growing]
    pending: int = 0

    @classmethod
    def like(cls, key: torch.Tensor, value: torch.Tensor, config: KIVConfig) -> Tokens:
        """Make one without tokens yet, for keys and values such as these."""
        batch, heads, _, width = key.shape
        coded = min(config.index_channels, width)
        dtype, device = compute_dtype(key.dtype), key.device

        def growing(width: int, dtype: torch.dtype = dtype) -> Growing:
            return Growing((batch, heads, width), dtype, device)

        return cls(
            key=growing(width, key.dtype),
            value=growing(value.shape[3], key.dtype),
            valid=torch.ones(batch, 0, dtype=torch.bool, device=device),
            sampled=growing(width),
            index=[
                *(growing(coded, torch.uint8), growing(coded, torch.int64), growing(coded), growing(coded)),
                *(growing(width), growing(width), growing(value.shape[3])),
            ],
        )

    @property
    def shape(self) -> StoreShape:
        """What every further token must be like (SPEC 9.1)."""
        key = self.key.tensor
        batch, heads, _, width = key.shape
        return StoreShape(batch, heads, width, self.value.tensor.shape[3], key.dtype, key.device)

    @property
    def length(self) -> int:
        """T."""
        return self.valid.shape[1]

    @property
    def _parts(self) -> list[Growing]:
        return [self.key, self.value, self.sampled, *self.index]

    def _with(self, parts: list[Growing], valid: torch.Tensor) -> Tokens:
        key, value, sampled, *index = parts
        return Tokens(key, value, valid, sampled, index, self.pending)

    def begin(self) -> Tokens:
        """Return a copy of the same buffers, to be changed and then put in place of this one, which serves until then.

        So a change is one assignment, and an interrupt comes before it or after it (SPEC 10.4).
        """
        return self._with([copy(part) for part in self._parts], self.valid)

    def append(self, key: torch.Tensor, value: torch.Tensor, valid: torch.Tensor | None) -> None:
        """Add n tokens (SPEC 9.1)."""
        self.key.append(key)
        self.value.append(value)
        if valid is None:
            valid = self.valid.new_ones(key.shape[0], key.shape[2])
        self.valid = torch.cat([self.valid, valid], dim=1)
        self.pending = key.shape[2]

    def sample(self, query: torch.Tensor) -> None:
        """Note the sampled ones among the last queries ``[B, HQ, TQ, D]``, unless an attend did so (SPEC 3.2)."""
        have, want, first = self.sampled.tensor.shape[2], self.length // SAMPLE_TOKENS, self.length - query.shape[2]
        if have == want:
            return
        positions = SAMPLE_TOKENS * torch.arange(have + 1, want + 1, device=query.device) - 1
        reached = positions[positions >= first]
        heads = self.key.tensor.shape[1]
        batch, _, _, width = query.shape
        grouped = query[:, :, reached - first].reshape(batch, heads, query.shape[1] // heads, len(reached), width)
        largest = grouped.abs().amax(dim=2).to(self.sampled.tensor.dtype)
        largest = largest.masked_fill(~self.valid[:, None, reached, None], torch.nan)
        missing = largest.new_full(
            (*largest.shape[:2], positions.numel() - reached.numel(), largest.shape[3]), torch.nan
        )
        self.sampled.append(torch.cat([missing, largest], dim=2))

    def index_pages(self, config: KIVConfig, part: Partition) -> None:
        """Make the index of all cold pages that have none yet (SPEC 3)."""
        coded = self.index[0].tensor.shape[3]
        for page in range(self.index[1].tensor.shape[2], part.pages):
            start, stop = part.page(page)
            last = (stop + config.hot_tokens) // SAMPLE_TOKENS
            weights = [query_weights(s) for s in self.sampled.tensor[:, :, max(0, last - SAMPLES) : last]]
            pages = [
                index_page(key, value, valid, weight, coded)
                for key, value, valid, weight in zip(
                    self.key.tensor[:, :, start:stop],
                    self.value.tensor[:, :, start:stop],
                    self.valid[:, start:stop],
                    weights,
                    strict=True,
                )
            ]
            for field, new in zip(self.index, zip(*pages, strict=True), strict=True):
                stacked = torch.stack(new)
                field.append(stacked if stacked.dim() == 4 else stacked[:, :, None])

    def view(self, sequence: int, head: int, part: Partition) -> HeadView:
        """View one sequence and KV head under a partition; its pages are indexed if they are ranked."""
        codes, *fields = (field.tensor[sequence, head] for field in self.index)
        pages = min(part.pages, fields[0].shape[0])
        by_page = codes[: pages * part.page_tokens].reshape(pages, part.page_tokens, codes.shape[1])
        return HeadView(
            key=self.key.tensor[sequence, head],
            value=self.value.tensor[sequence, head],
            valid=self.valid[sequence],
            index=PageIndex(by_page, *(field[:pages] for field in fields)),
            partition=part,
        )

    def crop(self, length: int, part: Partition) -> None:
        """Keep the first `length` tokens, whose partition is `part` (SPEC 9.2)."""
        self.key.crop(length)
        self.value.crop(length)
        self.valid = self.valid[:, :length].clone()
        self.pending = 0
        self.sampled.crop(length // SAMPLE_TOKENS)
        codes, *fields = self.index
        codes.crop(part.pages * part.page_tokens)
        for field in fields:
            field.crop(part.pages)

    def select(self, rows: torch.Tensor) -> None:
        """Make sequence i the former ``rows[i]`` (SPEC 9.3)."""
        for part in self._parts:
            part.select(rows)
        self.valid = self.valid[rows]

    def clone(self) -> Tokens:
        """Return an independent copy."""
        return self._with([part.clone() for part in self._parts], self.valid.clone())


def tier_bytes(config: KIVConfig, key: torch.Tensor, value: torch.Tensor, length: int, boundary: int) -> TierBytes:
    """Count the bytes of `length` tokens like ``key [B, H, n, D]`` and value, partitioned at `boundary` (SPEC 10.2).

    Device: sinks, hot, validity and what every step looks at. RAM: cold pages, sampled queries and error radii.
    """
    batch, heads, _, width = key.shape
    part = partition(config, boundary)
    cold, number = part.pages * part.page_tokens, compute_dtype(key.dtype).itemsize
    token = batch * heads * (width + value.shape[3]) * key.element_size()
    coded = min(config.index_channels, width)
    page = coded * (config.page_tokens + torch.int64.itemsize + 2 * number) + (width + value.shape[3]) * number
    pages = 0 if config.exact else batch * heads * part.pages
    wide = (batch * heads * (length // SAMPLE_TOKENS) + pages) * width * number
    return TierBytes((length - cold) * token + batch * length + pages * page, cold * token + wide, 0)
