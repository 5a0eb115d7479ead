"""Softmax attention over parts that lie in different places (SPEC 5.1), all heads of one sequence at once."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .arguments import Masses, Queries, Tile

LEAST = torch.finfo(torch.float32).min
"""Stands in for the logarithm of no mass, so that a difference with it is a number."""


class Part(NamedTuple):
    """Tokens or pseudo-tokens to attend to; minus infinity where a query does not see one."""

    logits: torch.Tensor  # [H, M, K]
    values: torch.Tensor  # [H, K, DV]


def raw_scores(queries: Queries, key: torch.Tensor) -> torch.Tensor:
    """Scores ``[H, M, K]`` for ``key [H, K, D]``, without a cap."""
    return torch.bmm(queries.members, key.transpose(1, 2)).mul_(queries.scale)


def tile_part(queries: Queries, tile: Tile) -> Part:
    """Return a tile as a part of a softmax, with minus infinity where a query may not look."""
    dtype = queries.query.dtype
    logits = queries.cap(raw_scores(queries, tile.key.to(dtype)))
    if tile.first + tile.count - 1 > queries.start:
        at = torch.arange(tile.first, tile.first + tile.count, device=logits.device)
        later = at[None, :] > queries.positions[:, None]  # [TQ, K]
        logits = logits.masked_fill(later.repeat(queries.query.shape[1], 1), -torch.inf)
    if tile.valid is not None:
        logits = logits.masked_fill(~tile.valid, -torch.inf)
    return Part(logits, tile.value.to(dtype))


def weigh(weights: torch.Tensor, values: torch.Tensor, logits: torch.Tensor, finite: bool) -> torch.Tensor:
    """Sum ``weights [H, M, K]`` times ``values [H, K, DV]``.

    Where a value may be infinite or NaN, what a query does not see is left out rather than multiplied by 0 (SPEC 2.5):
    the finite numbers go through the same product as ever, so that the others change no bit of what does not see them.
    """
    if finite:
        return torch.bmm(weights, values)
    good = torch.isfinite(values)
    output = torch.bmm(weights, values.masked_fill(~good, 0))
    for token in (~good).any(dim=2).any(dim=0).nonzero()[:, 0].tolist():
        odd = values[:, token].masked_fill(good[:, token], 0)[:, None]  # [H, 1, DV]
        seen = logits[:, :, token, None] > -torch.inf
        output += torch.where(seen, weights[:, :, token, None] * odd, 0)
    return output


def attend_parts(
    exact: list[Part],
    tail: list[Part],
    sink_logits: torch.Tensor | None,
    finite: bool,
    shift: torch.Tensor | None = None,
) -> tuple[torch.Tensor, Masses]:
    """One softmax over all parts, the learned sinks ``[H, M]`` in its denominator (SPEC 5.1, 8.2).

    Returns the output ``[H, M, DV]`` and the masses.
    `shift` ``[H, M, DV]`` is added to every value of the tail (SPEC 5.4).
    """
    parts = [*exact, *tail]
    logits = [part.logits for part in parts]
    if sink_logits is not None:
        logits.insert(len(exact), sink_logits[:, :, None])
    joined = torch.cat(logits, dim=2)
    most = joined.amax(dim=2, keepdim=True).clamp_(min=LEAST)
    weights = joined.sub_(most).exp_()
    total = weights.sum(dim=2, keepdim=True)
    weights.div_(total.clamp(min=torch.finfo(weights.dtype).tiny))
    sizes = [part.shape[2] for part in logits]
    pieces = list(weights.split(sizes, dim=2))
    held = sum(sizes[: len(exact) + (sink_logits is not None)])
    if sink_logits is not None:
        del pieces[len(exact)]
    output = weigh(pieces[0], parts[0].values, parts[0].logits, finite)
    for piece, part in zip(pieces[1:], parts[1:], strict=True):
        output += weigh(piece, part.values, part.logits, finite)
    held_mass, estimated = weights[:, :, :held].sum(dim=2), weights[:, :, held:].sum(dim=2)
    if shift is not None:
        # Without a pseudo-token nothing is moved, by whatever number (SPEC 2.5).
        shift = shift if finite else shift.masked_fill(estimated[:, :, None] == 0, 0)
        output.addcmul_(estimated[:, :, None], shift)
    # Their sum is 1 but for rounding, or 0 where nothing is attended; a share is never above 1.
    total = (held_mass + estimated).clamp_(min=torch.finfo(weights.dtype).tiny)
    return output, Masses(torch.stack([held_mass, estimated]).div_(total))
