"""The index of the cold pages that a block sees, in the shapes that the operations look at."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from kiv_reference.config import Group
from numpy.typing import NDArray

from ..device.transfer import Transfer
from ..memory.growable_table import Table


class Terms(NamedTuple):
    """What is stored of n pages up to `stop`, in the shapes that products of estimates have."""

    stop: int
    codes: torch.Tensor  # int32 [n, H, P / 16, 16, W / 4]
    channels: torch.Tensor | None  # integers [n * H, 1, 2 W]; None if all are coded
    step: torch.Tensor  # [n * H, 1, 2 W]
    base: torch.Tensor  # [n * H, D, 1]


@dataclass(frozen=True)
class PageIndex:
    """The index of the cold pages that a block sees in one sequence, or in each of several, where it lies.

    Attributes
    ----------
    codes, channels, step, base, mean : Table
        By page id (`index.codes`).
    ids : int32 [sequences * N]
        Of the pages, in order of position, sequence after sequence.
    whole : bool
        Whether the ids are consecutive.
    all_coded : bool
        Whether all channels are coded, which are in order then.
    pages, page_tokens, tokens : int
        N, P, and their product.
    unseen : bool [N * P], or None
        Cold tokens that are not valid; None if all are.
    group : "exp_sum" or "max"
    transfer : Transfer
    sequences : int
    """

    codes: Table
    channels: Table
    step: Table
    base: Table
    mean: Table
    ids: NDArray[np.int32]
    whole: bool
    all_coded: bool
    pages: int
    page_tokens: int
    tokens: int
    unseen: torch.Tensor | None
    group: Group
    transfer: Transfer
    sequences: int = 1
    _terms: dict[int, Terms] = field(init=False, default_factory=dict[int, "Terms"])

    @cached_property
    def means(self) -> torch.Tensor:
        """Mean values of the pages, ``[H, N, DV]``."""
        return self.by_page(self.mean).transpose(0, 1)

    def by_page(self, table: Table) -> torch.Tensor:
        """Return what a table has about all pages, ``[N, H, ...]``, the heads of all sequences side by side."""
        records = self.records(table)
        if self.sequences == 1:
            return records
        return records.view(self.sequences, -1, *records.shape[1:]).transpose(0, 1).flatten(1, 2)

    @cached_property
    def _sent_ids(self) -> torch.Tensor:
        """The ids, int64 on the device."""
        return self.transfer.send(torch.from_numpy(self.ids).long())

    def terms(self, first: int, stop: int) -> Terms:
        """Return what estimates are made of for pages ``[first, stop)``; views are kept for the next time."""
        known = self._terms.get(first)
        if known is not None and known.stop == stop:
            return known
        codes, step, base = (self.records(table, first, stop) for table in (self.codes, self.step, self.base))
        channels = None if self.all_coded else self.records(self.channels, first, stop).flatten(0, 1)[:, None]
        shape = step.flatten(0, 1)[:, None], base.flatten(0, 1)[:, :, None]
        terms = Terms(stop, codes.transpose(3, 4), channels, *shape)
        if self.whole:
            self._terms[first] = terms
        return terms

    def records(self, table: Table, first: int = 0, stop: int | None = None) -> torch.Tensor:
        """Return what a table has about pages ``[first, stop)``, where it is; a view if their ids are consecutive.

        Of several sequences one follows the other.
        """
        ids = self.ids[first:stop]
        if self.whole and len(ids):
            return table.tensor[ids.item(0) : ids.item(0) + len(ids)]
        every = torch.from_numpy(self.ids).long() if table.tensor.device.type == "cpu" else self._sent_ids
        return table.tensor.index_select(0, every.view(self.sequences, -1)[:, first:stop].flatten())
