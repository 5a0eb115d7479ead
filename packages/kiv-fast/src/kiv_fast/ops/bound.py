"""How much softmax mass may have been missed, from the sums that the tail has of the estimates (SPEC 6.2).

What may be missed is rounded up and what is held down: by what products lose at most, in whatever order they are
added, and by what exponentials and their sums do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .arguments import Found, Queries, Tile
from .estimates import LEVELS, Estimates, whole_unit
from .softmax import shared, tile_part
from .tail import unread_sums

WIDE = torch.float64

LEAST = 2.0**-130
"""More than what is lost of scale * q where that is below the normal numbers of float32."""


def log_held(queries: Queries, always: Sequence[Tile]) -> torch.Tensor:
    """Bound from below log Σ e^l of tokens that are always attended and of learned sinks, float64 ``[H, M]``."""
    members, asked = queries.members, _asked(queries)
    logits, magnitude = members[:, :, :0], members.new_zeros(members.shape[:2])
    for tile in always:
        largest = tile.key.abs().amax(dim=1).to(members.dtype)  # [H, D]
        logits = torch.cat([logits, tile_part(queries, tile).logits], dim=2)
        magnitude = torch.maximum(magnitude, (shared(asked, largest) @ largest[:, :, None]).view(magnitude.shape))
    held = torch.logsumexp(logits.to(WIDE), dim=2) - _lost(queries, magnitude)
    if queries.sink_logits is not None:
        held = torch.logaddexp(held, queries.sink_logits.flatten(1, 2).to(WIDE))
    return held


def missed_share(
    estimates: Estimates, found: Found, error: torch.Tensor, held: torch.Tensor, heads: slice
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the bounds, float64 ``[n, M]``, of the heads that `found` has; otherwise as `Ops.missed`."""
    queries, index, (slack, magnitude) = estimates.queries, estimates.index, _slack(estimates, error)
    lost = _lost(queries, magnitude)[heads]  # [n, M, N]
    unread = unread_sums(queries, estimates, found.candidates, heads)  # [n, M, N]
    sizes = unread.abs().masked_fill_(unread == -torch.inf, 0)
    room = torch.finfo(unread.dtype).eps * (2 * sizes + 3 * index.page_tokens + 256)
    unread = torch.logsumexp(
        (unread.to(WIDE) + slack[heads] + room + lost).masked_fill_(unread == -torch.inf, -torch.inf), 2
    )
    logits, selected = queries.cap(found.scores).to(WIDE), found.selected[:, None]
    page = found.candidates.long().clamp(min=0) // index.page_tokens  # [n, K]
    lost = lost.gather(2, page[:, None].expand_as(logits))
    kept = (logits - lost).masked_fill_(logits == -torch.inf, -torch.inf)
    left = (logits + lost).masked_fill(selected | (logits == -torch.inf), -torch.inf)
    missed = torch.logaddexp(torch.logsumexp(left, dim=2), unread)
    chosen = kept.masked_fill(~selected, -torch.inf)
    return _share(missed, chosen, held), _share(unread, kept, held)


def _share(missed: torch.Tensor, kept: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
    """Return the share of what was missed, its logarithm ``[n, M]``; logits ``[n, M, K]`` are attended."""
    held = torch.logaddexp(held, torch.logsumexp(kept, dim=2))
    # What is left are logarithms in float64, and their sums of fewer than 2^22 numbers.
    room = 2.0**-30 + torch.finfo(WIDE).eps * (held.abs() + missed.abs())
    share = torch.exp(room - torch.nn.functional.softplus(held - missed))
    return torch.where(missed == -torch.inf, 0.0, share.nan_to_num_(nan=1.0).clamp_(max=1.0))


def _asked(queries: Queries) -> torch.Tensor:
    """Return |scale * q| ``[H, M, D]``, nowhere 0."""
    return queries.members.abs() * abs(queries.scale) + LEAST


def _lost(queries: Queries, magnitude: torch.Tensor) -> torch.Tensor:
    """Return what a logit loses at most, float64, of the shape of `magnitude`; infinity where it may not be a number.

    `magnitude` ``[H, M]`` or ``[H, M, N]`` is no less than Σ |scale * q| |k| of any key.
    """
    info = torch.finfo(magnitude.dtype)
    lost = info.eps * ((queries.members.shape[2] + 16) * magnitude.to(WIDE) + 4 * (queries.softcap or 0.0) + 64)
    return lost.masked_fill_(~(magnitude < info.max / 16 * min(1.0, abs(queries.scale))), torch.inf)


def _slack(estimates: Estimates, error: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what scores of pages exceed their estimates by, float64 ``[H, M, N]``; and their magnitude, ``[H, M, N]``.

    `error` ``[N, H, D]`` is the largest distance of a page's keys from their approximate keys.
    """
    index, every = estimates.index, estimates.queries.members.shape[:2]
    channels, step, base = (index.by_page(table) for table in (index.channels, index.step, index.base))
    asked, members = (shared(part, step[0]) for part in (_asked(estimates.queries), estimates.queries.members))
    picked = channels.long()[:, :, None].expand(-1, -1, members.shape[1], -1)
    coded = (members * estimates.queries.scale).expand(len(step), *members.shape).gather(3, picked) * step[:, :, None]
    size = coded.abs()  # [N, H, M, 2 W]
    unit = whole_unit(size.amax(dim=3, keepdim=True))
    less = (coded - (coded / unit).round_().mul_(unit)).clamp_(min=0).sum(dim=3).permute(1, 2, 0) * (LEVELS - 1)
    spread = asked @ error.permute(1, 2, 0)
    magnitude = asked @ base.abs().permute(1, 2, 0) + spread + less + LEVELS * size.sum(dim=3).permute(1, 2, 0)
    return (spread.to(WIDE) + less).view(*every, -1), magnitude.view(*every, -1)
