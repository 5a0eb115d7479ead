"""Softmax attention over parts that lie in different places (SPEC 5.1), all heads of one sequence at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch

from .arguments import Queries, Tile
from .estimates import joined

LEAST = torch.finfo(torch.float32).min
"""Stands in for the logarithm of no mass, so that a difference with it is a number."""


class Part(NamedTuple):
    """Tokens to attend to; minus infinity where a query does not see one."""

    logits: torch.Tensor  # [H, M, K]
    values: torch.Tensor  # [H, K, DV], in the dtype of computation


def raw_scores(queries: Queries, key: torch.Tensor) -> torch.Tensor:
    """Return scores ``[H, M, K]`` for ``key [H, K, D]``, which blocks have in common, without a cap."""
    members = queries.scaled if queries.blocks == 1 else shared(queries.scaled, key)
    scores = torch.bmm(members, key.to(members.dtype).transpose(1, 2))
    return scores if queries.blocks == 1 else scores.view(*queries.scaled.shape[:2], key.shape[1])


def shared(of_members: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """View what there is of each member ``[H, M, X]`` as of the heads that tokens ``[heads, K, W]`` have.

    These are as many, or fewer where blocks are answered together: their members are those of one head here.
    """
    heads, members, width = of_members.shape
    return of_members.view(tokens.shape[0], heads // tokens.shape[0] * members, width)


def tile_part(queries: Queries, tile: Tile) -> Part:
    """Return a tile as a part of a softmax."""
    return Part(tile_logits(queries, [tile]), tile.value.to(queries.query.dtype))


def tile_logits(queries: Queries, tiles: Sequence[Tile]) -> torch.Tensor:
    """Return logits ``[H, M, K]`` of tiles, with minus infinity where a query may not look."""
    logits = queries.cap(raw_scores(queries, joined([tile.key for tile in tiles], 1)))
    if any(tile.first + tile.count - 1 > queries.start or tile.valid is not None for tile in tiles):
        hidden = joined([_hidden(queries, tile) for tile in tiles], 1)
        _, groups, count, _ = queries.query.shape
        of_queries = logits.view(len(logits) // queries.blocks, queries.blocks, groups, count, hidden.shape[1])
        of_queries.masked_fill_(hidden.view(queries.blocks, 1, count, hidden.shape[1]), -torch.inf)
    return logits


def _hidden(queries: Queries, tile: Tile) -> torch.Tensor:
    """Tell which tokens the queries of all blocks may not see, bool ``[TQ, count]``: later ones, and invalid ones."""
    at = torch.arange(tile.first, tile.first + tile.count, device=queries.query.device)
    later = at[None, :] > queries.positions[:, None]
    return later if tile.valid is None else later.logical_or_(~tile.valid)


def attend_tile(queries: Queries, tile: Tile, finite: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attend a tile alone, with its logits written out (`Ops.attend_tile`)."""
    logits, value = tile_part(queries, tile)  # [H, M, K]
    most = logits.amax(dim=2)
    weights = torch.exp(logits - most.clamp(min=LEAST)[:, :, None])
    total = weights.sum(dim=2)
    weights /= total.clamp(min=torch.finfo(total.dtype).tiny)[:, :, None]
    return weigh(weights, value, logits, finite), most, total


def weigh(weights: torch.Tensor, values: torch.Tensor, logits: torch.Tensor, finite: bool) -> torch.Tensor:
    """Sum ``weights [H, M, K]`` times ``values [H, K, DV]``.

    Where a value may be infinite or NaN, what a query does not see is left out rather than multiplied by 0 (SPEC 2.5):
    the finite numbers go through the same product as ever, so that the others change no bit of what does not see them.
    """
    if finite:
        return torch.bmm(weights, values)
    good = torch.isfinite(values)
    output = torch.bmm(weights, values.masked_fill(~good, 0))
    odd_tokens = (~good).any(dim=2).any(dim=0).nonzero()[:, 0]
    for token in cast("list[int]", odd_tokens.tolist()):
        odd = values[:, token].masked_fill(good[:, token], 0)[:, None]  # [H, 1, DV]
        seen = logits[:, :, token, None] > -torch.inf
        output += torch.where(seen, weights[:, :, token, None] * odd, 0)
    return output


def attend_all(
    queries: Queries, logits: list[torch.Tensor], values: list[torch.Tensor], padded: bool, finite: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend by one softmax to tokens that lie in several places (SPEC 5.1, 8.2).

    Parameters
    ----------
    queries : Queries
        Whose sink logits, if there are any, are in the denominator alone.
    logits : of [H, M, K]
    values : of [H, K, DV], in any dtype; of fewer heads where blocks have them in common (`shared`)
    padded : bool
        Whether a query may see nothing: its output is zeros.
    finite : bool
        Whether all values are.

    Returns
    -------
    Tensor [H, M, DV]
    Tensor [H, M, all K]
        Weights.
    """
    joint, sink_logits = joined(logits, 2), queries.sink_logits
    if sink_logits is None:
        weights = torch.softmax(joint, dim=2)
    else:
        sink_logits = sink_logits.flatten(1, 2)[:, :, None]
        weights = torch.softmax(torch.cat([joint, sink_logits], dim=2), dim=2)[:, :, :-1]
    if padded:
        weights = weights.masked_fill((joint == -torch.inf).all(dim=2, keepdim=True), 0)
    if queries.blocks == 1:
        return weigh(weights, joined(values, 1).to(weights.dtype), joint, finite), weights
    output, start = None, 0
    for mine, value in zip(logits, values, strict=True):
        part = shared(weights[:, :, start : start + mine.shape[2]], value)
        part = weigh(part, value.to(part.dtype), shared(mine, value), finite).view(*joint.shape[:2], value.shape[2])
        output, start = part if output is None else output.add_(part), start + mine.shape[2]
    assert output is not None, "nothing to attend to"
    return output, weights
