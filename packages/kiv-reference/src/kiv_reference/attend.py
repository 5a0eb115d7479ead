"""Attention over a set of tokens and pseudo-tokens (SPEC 5.1, 6.1, 8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from .view import HeadView

TILE_TOKENS = 256
"""Queries of one exact tile: bounds the memory of a long call, changes no result."""


@dataclass(frozen=True)
class Modifiers:
    """What a model changes about attention, for one sequence and KV head (SPEC 8)."""

    scale: float
    softcap: float | None
    sink_logits: torch.Tensor | None  # [G, TQ]

    def cap(self, logits: torch.Tensor) -> torch.Tensor:
        """Apply the soft cap (SPEC 8.1)."""
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def logits(self, query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Return logits of ``query [G, TQ, D]`` for ``keys [K, D]``: ``[G, TQ, K]`` (SPEC 5.1)."""
        return self.cap(self.scale * (query @ keys.T))

    def narrow(self, start: int, stop: int) -> Modifiers:
        """Return the same for the queries ``[start, stop)``."""
        sinks = None if self.sink_logits is None else self.sink_logits[:, start:stop]
        return Modifiers(self.scale, self.softcap, sinks)


class Pseudo(NamedTuple):
    """Pseudo-tokens of the tail: M of them (SPEC 5.2)."""

    logits: torch.Tensor  # [G, TQ, M]
    values: torch.Tensor  # [M, G, TQ, DV], of each query


class Attended(NamedTuple):
    """Output and mass shares of G query heads and TQ queries."""

    output: torch.Tensor  # [G, TQ, DV]
    exact: torch.Tensor  # [G, TQ], share of the mass (SPEC 6.1)
    estimated: torch.Tensor  # [G, TQ], share of the mass (SPEC 6.1)


def weigh(weights: torch.Tensor, values: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Sum ``weights [G, TQ, K]`` times ``values [K, DV]`` over the tokens that each query sees, bool ``[TQ, K]``.

    A query's weight for a token it does not see is 0, and 0 times NaN is NaN: values that are not finite are
    therefore summed query by query, over the seen tokens only (SPEC 2.5).
    """
    if bool(torch.isfinite(values).all()):
        return weights @ values
    return torch.stack([weights[:, t, seen[t]] @ values[seen[t]] for t in range(seen.shape[0])], dim=1)


def attend_tokens(
    query: torch.Tensor,
    query_positions: torch.Tensor,
    view: HeadView,
    positions: torch.Tensor,
    modifiers: Modifiers,
    tail: Pseudo | None = None,
) -> Attended:
    """Attend by softmax to the tokens at `positions` that are not later than the query, and the tail (SPEC 5.1).

    Parameters
    ----------
    query : [G, TQ, D], in the dtype of computation
    query_positions : int64 [TQ]
    positions : int64 [K], valid positions
    """
    seen = positions[None, :] <= query_positions[:, None]  # [TQ, K]
    logits = [modifiers.logits(query, view.keys(positions)).masked_fill(~seen, -torch.inf)]
    if modifiers.sink_logits is not None:
        logits.append(modifiers.sink_logits[:, :, None])
    held = sum(part.shape[2] for part in logits)
    if tail is not None:
        logits.append(tail.logits)
    # One softmax over everything: merging parts by their log-sum-exp loses the log where logits are huge.
    joined = torch.cat(logits, dim=2)
    weights = torch.softmax(joined, dim=2).masked_fill(joined == -torch.inf, 0.0)
    output = weigh(weights[:, :, : positions.numel()], view.values(positions), seen)
    exact, estimated = weights[:, :, :held].sum(dim=2), weights[:, :, held:].sum(dim=2)
    if tail is not None:
        output = output + torch.einsum("gtm,mgtv->gtv", weights[:, :, held:], tail.values)
    # Their sum is 1 but for rounding, or 0 where nothing is attended.
    total = (exact + estimated).masked_fill(exact + estimated == 0, 1.0)
    return Attended(output, exact / total, estimated / total)


def attend_exactly(
    query: torch.Tensor, query_positions: torch.Tensor, view: HeadView, modifiers: Modifiers
) -> Attended:
    """Attend fully, a tile of queries at a time (SPEC 7.1); arguments as for `attend_tokens`."""
    tiles: list[Attended] = []
    for start in range(0, query.shape[1], TILE_TOKENS):
        stop = min(start + TILE_TOKENS, query.shape[1])
        tile = query_positions[start:stop]
        positions = view.positions(0, int(tile[-1]) + 1)
        tiles.append(attend_tokens(query[:, start:stop], tile, view, positions, modifiers.narrow(start, stop)))
    return Attended(*(torch.cat(parts, dim=1) for parts in zip(*tiles, strict=True)))
