"""All that one sequence and one KV head hold, as the retrieval and the attention of one block see it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from .estimate import code_weights, estimates
from .index import PageIndex, approximate_keys, compute_dtype

if TYPE_CHECKING:
    from .partition import Partition


@dataclass(frozen=True)
class HeadView:
    """Tokens and index of one sequence and one KV head, under one partition.

    Attributes
    ----------
    key : [T, D]
    value : [T, DV]
    valid : bool [T]
    index : PageIndex
        Of all cold pages: I = N stands for H in its shapes.
    """

    key: torch.Tensor
    value: torch.Tensor
    valid: torch.Tensor
    index: PageIndex
    partition: Partition

    @cached_property
    def _approximate(self) -> torch.Tensor:
        """Approximate keys of the cold positions, ``[N * P, D]``; of no meaning where they are invalid (SPEC 3.4)."""
        index = self.index
        return approximate_keys(index.codes, index.channels, index.centre, index.step, index.mean).flatten(0, 1)

    def keys(self, positions: torch.Tensor) -> torch.Tensor:
        """Return keys at `positions` int64 [K], in the dtype of computation, ``[K, D]``."""
        return self.key[positions].to(compute_dtype(self.key.dtype))

    def approximate_keys(self, positions: torch.Tensor) -> torch.Tensor:
        """Approximate the keys at cold `positions` int64 [K], ``[K, D]``."""
        return self._approximate[positions - self.partition.cold_start]

    def estimates(
        self, query: torch.Tensor, positions: torch.Tensor, scale: float, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """Estimate scores ``[..., K]`` for ``query [..., D]`` at cold `positions` int64 [K] (SPEC 4.2).

        The operations of `dtype` give the weights; default: those of the query's.
        """
        given = None
        if dtype is not None:
            weights, unit = code_weights(query.to(dtype), self.index._replace(step=self.index.step.to(dtype)), scale)
            given = weights.to(query.dtype), unit.to(query.dtype)
        return estimates(query, self.index, scale, given)[..., positions - self.partition.cold_start]

    def values(self, positions: torch.Tensor) -> torch.Tensor:
        """Return values at `positions` int64 [K], in the dtype of computation, ``[K, DV]``."""
        return self.value[positions].to(compute_dtype(self.key.dtype))

    def positions(self, start: int, stop: int) -> torch.Tensor:
        """Return valid positions in ``[start, stop)``, ascending, int64."""
        stop = min(stop, self.valid.shape[0])
        start = min(start, stop)
        return start + self.valid[start:stop].nonzero()[:, 0]

    def cold_positions(self) -> torch.Tensor:
        """Return valid positions of all cold pages, ascending, int64."""
        return self.positions(self.partition.cold_start, self.partition.hot_start)

    def always_attended(self) -> torch.Tensor:
        """Return valid positions of sinks and hot, ascending, int64."""
        sinks = self.positions(0, self.partition.cold_start)
        return torch.cat([sinks, self.positions(self.partition.hot_start, self.valid.shape[0])])

    def pages(self, positions: torch.Tensor) -> torch.Tensor:
        """Return the cold page of each of cold `positions`, int64."""
        return (positions - self.partition.cold_start) // self.partition.page_tokens
