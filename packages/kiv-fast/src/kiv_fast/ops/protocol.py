"""The operations that a step of one layer and sequence is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from .arguments import Found, PagedTile, Queries, Rows, Tile
from .page_index import PageIndex


class Ops(Protocol):
    """One way to compute a step. All give the same numbers but for rounding (SPEC 11).

    Attributes
    ----------
    name : str
    in_place : bool
        Whether keys and values in RAM are read where they lie, pages too.
    """

    name: str
    in_place: bool

    def finite(self, *tensors: torch.Tensor) -> list[bool]:
        """Tell of each whether all numbers are finite; it may say no of large ones that are."""
        ...

    def append(self, pairs: tuple[tuple[torch.Tensor, torch.Tensor, int], ...]) -> list[bool]:
        """Write tokens into windows, and tell of each tensor whether its numbers are finite.

        Parameters
        ----------
        pairs : of tokens [B, H, n, W], a window [B, H, capacity, W], and the place of the first token there
        """
        ...

    def estimate(self, index: PageIndex, queries: Queries, most: int) -> Any:
        """Estimate every cold token and rank them (SPEC 4.2, 4.3); no more than the `most` best will be asked for."""
        ...

    def select(self, estimates: Any, keys: Rows, candidates: int, selected: int) -> Found:
        """Read the keys of the best `candidates`, and select the best of these (SPEC 4.4 to 4.6, 4.9)."""
        ...

    def widen(self, estimates: Any, keys: Rows, found: Found, candidates: int) -> Found:
        """Take more candidates for the heads that are late, without reading a key again (SPEC 4.9)."""
        ...

    def take(self, estimates: Any, keys: Rows, head: int, known: Found, count: int) -> Found:
        """Select the best `count` tokens of one head, all of them: a row of that head alone (SPEC 6.3).

        Parameters
        ----------
        known : Found
            The row of the head whose candidates, all among these, are not read again.
        """
        ...

    def held(self, queries: Queries, always: Sequence[Tile]) -> torch.Tensor:
        """Return no more than the logarithm of what tokens and learned sinks weigh, float64 [H, M] (SPEC 6.2)."""
        ...

    def missed(
        self, estimates: Any, found: Found, error: torch.Tensor, held: torch.Tensor, head: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the missed bound of all heads or of the one that `found` has, float64 [n, M] (SPEC 6.2).

        The second is what it would be if all candidates were selected; the third what it is at least with these and
        any others that may be asked for (`estimate`), or 0 if that is not known.

        Parameters
        ----------
        error : [N, H, D]
            Of each cold page the largest distance of its keys from their approximate keys.
        held : [H, M]
            Of the tokens that are always attended (`held`).
        """
        ...

    def attend(
        self,
        queries: Queries,
        always: Sequence[Tile | PagedTile],
        finite: bool,
        retrieved: tuple[Any, Found, Rows] | None,
        tail: bool,
        out: torch.Tensor,
    ) -> torch.Tensor:
        """Attend sinks, hot tokens and selection, and by their pages the rest (SPEC 5, 6.1).

        Parameters
        ----------
        always : list of Tile, or of PagedTile too if `in_place`
            Tokens that a query attends to as far as its own position.
        finite : bool
            Whether every value is a number.
        retrieved : estimates, found, values; or None
        tail : bool
            Whether what is not selected counts by its estimates.
        out : [HQ, TQ, DV], in the dtype of the keys
            Where the output goes.

        Returns
        -------
        Tensor [H, M]
            Estimated shares of mass; what is left of 1 is exact.
        """
        ...

    def attend_tile(
        self, queries: Queries, tile: Tile | PagedTile, finite: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Attend some tokens alone, for queries without learned sinks.

        Returns
        -------
        Tensor of H * M * DV numbers, in the dtype of computation
            The output.
        Tensor [H, M], twice
            The largest logit, and the sum of e^(logit - it); of no token, a sum of 0.
        """
        ...
