"""All that one sequence and one KV head hold, as the retrieval and the attention of one block see it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .partition import Partition
from .summary import compute_dtype


@dataclass(frozen=True)
class HeadView:
    """Tokens and page summaries of one sequence and one KV head, under one partition.

    Attributes
    ----------
    key : [T, D]
    value : [T, DV]
    valid : bool [T]
    count : int64 [N]
        Valid tokens of each cold page.
    mean, spread : [N, D]
    value_mean : [N, DV]
    """

    key: torch.Tensor
    value: torch.Tensor
    valid: torch.Tensor
    count: torch.Tensor
    mean: torch.Tensor
    spread: torch.Tensor
    value_mean: torch.Tensor
    partition: Partition

    def keys(self, positions: torch.Tensor) -> torch.Tensor:
        """Keys at `positions` int64 [K], in the dtype of computation, ``[K, D]``."""
        return self.key[positions].to(compute_dtype(self.key.dtype))

    def values(self, positions: torch.Tensor) -> torch.Tensor:
        """Values at `positions` int64 [K], in the dtype of computation, ``[K, DV]``."""
        return self.value[positions].to(compute_dtype(self.key.dtype))

    def positions(self, start: int, stop: int) -> torch.Tensor:
        """Valid positions in ``[start, stop)``, ascending, int64."""
        stop = min(stop, self.valid.shape[0])
        start = min(start, stop)
        return start + self.valid[start:stop].nonzero()[:, 0]

    def page_positions(self, page: int) -> torch.Tensor:
        """Valid positions of a cold page, ascending, int64."""
        return self.positions(*self.partition.page(page))

    def cold_positions(self) -> torch.Tensor:
        """Valid positions of all cold pages, ascending, int64."""
        return self.positions(self.partition.cold_start, self.partition.hot_start)

    def always_attended(self) -> torch.Tensor:
        """Valid positions of sinks and hot, ascending, int64."""
        sinks = self.positions(0, self.partition.cold_start)
        return torch.cat([sinks, self.positions(self.partition.hot_start, self.valid.shape[0])])

    def pages(self) -> torch.Tensor:
        """Cold pages with at least one valid token, ascending, int64."""
        return (self.count > 0).nonzero()[:, 0]
