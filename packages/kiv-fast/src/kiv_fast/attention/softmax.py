"""Softmax attention over parts that lie in different places (SPEC 5.1), all heads of one sequence at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..memory.scratch import Scratch

LEAST = torch.finfo(torch.float32).min
"""Stands in for the logarithm of no mass, so that a difference with it is a number."""


@dataclass(frozen=True)
class Queries:
    """The valid queries of one block and sequence, in the dtype of computation, and what the model does to logits.

    Attributes
    ----------
    query : [H, G, TQ, D]
    positions : int64 [TQ], ascending
    first : int
        No query is before it: query i is at ``first + i`` or, with padding, later.
    scale : float
    softcap : float, optional
    sink_logits : [H, G, TQ], optional
    """

    query: torch.Tensor
    positions: torch.Tensor
    first: int
    scale: float
    softcap: float | None
    sink_logits: torch.Tensor | None

    @property
    def members(self) -> torch.Tensor:
        """All queries of a KV head, ``[H, M, D]`` with M = G * TQ."""
        return self.query.flatten(1, 2)

    def cap(self, logits: torch.Tensor) -> torch.Tensor:
        """Apply the soft cap (SPEC 8.1); minus infinity, which hides a token, stays."""
        if self.softcap is None:
            return logits
        return torch.tanh(logits / self.softcap).mul_(self.softcap).masked_fill_(logits == -torch.inf, -torch.inf)

    def raw(self, key: torch.Tensor) -> torch.Tensor:
        """Scores ``[H, M, K]`` for ``key [H, K, D]``, without a cap."""
        return (self.members @ key.transpose(1, 2)).mul_(self.scale)

    def logits(self, key: torch.Tensor) -> torch.Tensor:
        """Logits ``[H, M, K]`` for ``key [H, K, D]``."""
        return self.cap(self.raw(key))

    def hide(self, logits: torch.Tensor, first: int, valid: torch.Tensor | None) -> torch.Tensor:
        """Put minus infinity where a query may not look: ``[H, M, K]``, keys from `first` on, `valid` bool [K]."""
        last = first + logits.shape[2] - 1
        if last > self.first:
            at = torch.arange(first, last + 1, device=logits.device)
            later = at[None, :] > self.positions[:, None]  # [TQ, K]
            groups = self.query.shape[1]
            logits = logits.masked_fill(later.repeat(groups, 1), -torch.inf)
        if valid is not None:
            logits = logits.masked_fill(~valid, -torch.inf)
        return logits


class Tile(NamedTuple):
    """Consecutive tokens: ``key [H, n, D]`` and ``value [H, n, DV]`` of positions from `first` on."""

    key: torch.Tensor
    value: torch.Tensor
    first: int
    valid: torch.Tensor | None  # bool [n]


class Part(NamedTuple):
    """Tokens or pseudo-tokens to attend to; minus infinity where a query does not see one."""

    logits: torch.Tensor  # [H, M, K]
    values: torch.Tensor  # [H, K, DV]


class Attended(NamedTuple):
    """Output ``[H, M, DV]`` and shares of mass ``[H, M]`` (SPEC 6.1)."""

    output: torch.Tensor
    exact: torch.Tensor
    estimated: torch.Tensor


def always_parts(queries: Queries, tiles: list[Tile], scratch: Scratch) -> list[Part]:
    """Sinks and hot as parts of a softmax."""
    parts: list[Part] = []
    dtype = queries.query.dtype
    for number, tile in enumerate(tiles):
        key = scratch.convert(f"key {number}", tile.key, dtype)
        logits = queries.hide(queries.logits(key), tile.first, tile.valid)
        parts.append(Part(logits, scratch.convert(f"value {number}", tile.value, dtype)))
    return parts


def weigh(weights: torch.Tensor, values: torch.Tensor, logits: torch.Tensor, finite: bool) -> torch.Tensor:
    """Sum ``weights [H, M, K]`` times ``values [H, K, DV]``.

    Where a value may be infinite or NaN, what a query does not see is left out rather than multiplied by 0 (SPEC 2.5):
    the finite numbers go through the same product as ever, so that the others change no bit of what does not see them.
    """
    if finite:
        return weights @ values
    good = torch.isfinite(values)
    output = weights @ values.masked_fill(~good, 0)
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
) -> Attended:
    """One softmax over all parts, the learned sinks ``[H, M]`` in its denominator (SPEC 5.1, 8.2).

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
        output.addcmul_(estimated[:, :, None], shift)
    # Their sum is 1 but for rounding, or 0 where nothing is attended; a share is never above 1.
    total = (held_mass + estimated).clamp_(min=torch.finfo(weights.dtype).tiny)
    return Attended(output, held_mass.div_(total), estimated.div_(total))
