"""The state of a store: its tokens, and what is computed from them once a page is cold (SPEC 2.1)."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import torch

from .config import KIVConfig
from .partition import Partition, partition
from .report import TierBytes
from .rows import Rows
from .summary import compute_dtype, summarise
from .view import HeadView


@dataclass
class Tokens:
    """Keys ``[B, H, T, D]``, values ``[B, H, T, DV]``, validity bool ``[B, T]``, and summaries of the first pages.

    The summaries are a function of the tokens, kept so that they are computed once: they may cover fewer pages
    than the partition has until `summarise_pages` is called. `pending` counts the tokens of the last append, if no crop
    came after it.
    """

    key: Rows
    value: Rows
    valid: torch.Tensor
    mean: Rows
    spread: Rows
    value_mean: Rows
    pending: int = 0

    @classmethod
    def like(cls, key: torch.Tensor, value: torch.Tensor) -> Tokens:
        """Without tokens yet, for keys and values such as these."""
        batch, heads, _, width = key.shape
        key_shape, value_shape = (batch, heads, width), (batch, heads, value.shape[3])
        dtype, device = compute_dtype(key.dtype), key.device
        return cls(
            key=Rows(key_shape, key.dtype, device),
            value=Rows(value_shape, key.dtype, device),
            valid=torch.ones(batch, 0, dtype=torch.bool, device=device),
            mean=Rows(key_shape, dtype, device),
            spread=Rows(key_shape, dtype, device),
            value_mean=Rows(value_shape, dtype, device),
        )

    @property
    def length(self) -> int:
        """T."""
        return self.valid.shape[1]

    def begin(self) -> Tokens:
        """A copy of the same buffers, to be changed and then put in place of this one, which serves until then.

        So a change is one assignment, and an interrupt comes before it or after it (SPEC 10.4).
        """
        rows = (copy(r) for r in (self.key, self.value, self.mean, self.spread, self.value_mean))
        key, value, mean, spread, value_mean = rows
        return Tokens(key, value, self.valid, mean, spread, value_mean, self.pending)

    def append(self, key: torch.Tensor, value: torch.Tensor, valid: torch.Tensor | None) -> None:
        """Add n tokens (SPEC 9.1)."""
        self.key.append(key)
        self.value.append(value)
        if valid is None:
            valid = self.valid.new_ones(key.shape[0], key.shape[2])
        self.valid = torch.cat([self.valid, valid], dim=1)
        self.pending = key.shape[2]

    def summarise_pages(self, part: Partition) -> None:
        """Compute the summaries of all cold pages that have none yet (SPEC 3.1)."""
        for page in range(self.mean.tensor.shape[2], part.pages):
            start, stop = part.page(page)
            pages = [
                summarise(key, value, valid)
                for key, value, valid in zip(
                    self.key.tensor[:, :, start:stop],
                    self.value.tensor[:, :, start:stop],
                    self.valid[:, start:stop],
                    strict=True,
                )
            ]
            self.mean.append(torch.stack([page.mean for page in pages])[:, :, None])
            self.spread.append(torch.stack([page.spread for page in pages])[:, :, None])
            self.value_mean.append(torch.stack([page.value for page in pages])[:, :, None])

    def view(self, sequence: int, head: int, part: Partition) -> HeadView:
        """One sequence and KV head under a partition whose pages are summarised."""
        cold = self.valid[sequence, part.cold_start : part.hot_start]
        return HeadView(
            key=self.key.tensor[sequence, head],
            value=self.value.tensor[sequence, head],
            valid=self.valid[sequence],
            count=cold[: part.pages * part.page_tokens].view(part.pages, part.page_tokens).sum(dim=1),
            mean=self.mean.tensor[sequence, head, : part.pages],
            spread=self.spread.tensor[sequence, head, : part.pages],
            value_mean=self.value_mean.tensor[sequence, head, : part.pages],
            partition=part,
        )

    def crop(self, length: int, part: Partition) -> None:
        """Keep the first `length` tokens, whose partition is `part` (SPEC 9.2)."""
        self.key.crop(length)
        self.value.crop(length)
        self.valid = self.valid[:, :length].clone()
        self.pending = 0
        for rows in (self.mean, self.spread, self.value_mean):
            rows.crop(part.pages)

    def select(self, rows: torch.Tensor) -> None:
        """Make sequence i the former ``rows[i]`` (SPEC 9.3)."""
        for tensor in (self.key, self.value, self.mean, self.spread, self.value_mean):
            tensor.select(rows)
        self.valid = self.valid[rows]

    def clone(self) -> Tokens:
        """An independent copy."""
        rows = (r.clone() for r in (self.key, self.value, self.mean, self.spread, self.value_mean))
        key, value, mean, spread, value_mean = rows
        return Tokens(key, value, self.valid.clone(), mean, spread, value_mean, self.pending)


def tier_bytes(config: KIVConfig, key: torch.Tensor, value: torch.Tensor, length: int, boundary: int) -> TierBytes:
    """Bytes of `length` tokens like those of ``key [B, H, n, D]`` and value, partitioned at `boundary` (SPEC 10.2).

    Device: sinks, hot, validity and summaries. RAM: cold pages.
    """
    batch, heads, _, width = key.shape
    part = partition(config, boundary)
    cold = part.pages * part.page_tokens
    token = batch * heads * (width + value.shape[3]) * key.element_size()
    page = batch * heads * (2 * width + value.shape[3]) * compute_dtype(key.dtype).itemsize
    return TierBytes((length - cold) * token + batch * length + part.pages * page, cold * token, 0)
