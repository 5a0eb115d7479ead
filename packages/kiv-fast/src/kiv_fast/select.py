"""Which pages and which tokens a query block retrieves (SPEC 4), all KV heads at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from kiv_reference.config import Group

if TYPE_CHECKING:
    from .cold import Cold
    from .rows import ColdRow

GUESS = 1024
"""On a device other than the CPU, so many pages that the bounds leave undecided reach the host in one wait."""


def top(scores: torch.Tensor, n: int) -> torch.Tensor:
    """Indices of the `n` best of ``[H, I]``: higher score first, then lower index (SPEC 1.3)."""
    if n == 0:
        return torch.empty(scores.shape[0], 0, dtype=torch.int64, device=scores.device)
    if scores.device.type == "cpu" and n < scores.shape[1]:
        values, indices = scores.topk(n + 1, dim=1)
        if not bool((values[:, 1:] == values[:, :-1]).any()):
            return indices[:, :n]
    return torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :n]


def top_set(scores: torch.Tensor, n: int) -> torch.Tensor:
    """The indices of `top`, ascending."""
    if n >= scores.shape[1]:
        return torch.arange(scores.shape[1], device=scores.device).expand(scores.shape[0], -1)
    if scores.device.type == "cpu":
        values, indices = scores.topk(n + 1, dim=1)
        if bool((values[:, n] < values[:, n - 1]).all()):
            return indices[:, :n].sort(dim=1).values
    best = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :n]
    return best.sort(dim=1).values


def group_scores(scores: torch.Tensor, group: Group, most: torch.Tensor | None = None) -> torch.Tensor:
    """One score for each item from those of all members (SPEC 4.3).

    Parameters
    ----------
    scores : [H, M, I]
        Minus infinity where an item is not ranked.
    most : [H, M, 1], optional
        The maximum over all items, if these are only some.

    Returns
    -------
    Tensor [H, I]
    """
    if group == "max":
        return scores.amax(dim=1)
    if most is None:
        most = scores.amax(dim=2, keepdim=True)
    return torch.exp(scores - most).sum(dim=1)


def page_query(query: torch.Tensor, scale: float, spread_weight: float) -> torch.Tensor:
    """``u`` with page score ``u . [mean, spread]`` (SPEC 4.2), of queries ``[H, M, D]``: ``[H, M, 2 D]``."""
    return torch.cat([query, query.abs().mul_(spread_weight)], dim=2).mul_(scale)


def exact_scores(cold: Cold, row: ColdRow, members: torch.Tensor, pages: torch.Tensor) -> torch.Tensor:
    """Scores ``[H, M, K]`` of some pages of a row, int64 ``[H, K]`` in RAM, each head its own."""
    heads, count = pages.shape
    cold.counters.pages_scored += heads * count
    width = members.shape[2]
    picked = cold.gather(cold.index.keys, row.units(pages).view(-1), width).view(heads, count, width)
    return members @ picked.transpose(1, 2)


def all_scores(cold: Cold, row: ColdRow, members: torch.Tensor, first: int, stop: int) -> torch.Tensor:
    """Scores ``[H, M, stop - first]`` of the pages ``[first, stop)``; minus infinity where a page is empty."""
    cold.counters.pages_scored += members.shape[0] * (stop - first)
    scores = members @ cold.transfer.upload(cold.summaries(row, first, stop)).permute(1, 2, 0)
    if row.table.empty:
        scores.masked_fill_(row.empty(first, stop), -torch.inf)
    return scores


def rank(cold: Cold, row: ColdRow, members: torch.Tensor, pages: int, n: int, group: Group) -> torch.Tensor:
    """The `n` best of the first `pages` pages, best first, by exact scores of all: int64 ``[H, n]``."""
    scores = group_scores(all_scores(cold, row, members, 0, pages), group)
    if row.table.empty:
        scores.masked_fill_(row.empty(0, pages), -torch.inf)
    return top(scores, n)


def candidates(cold: Cold, row: ColdRow, members: torch.Tensor, pages: int, n: int, group: Group) -> torch.Tensor:
    """The `n` best of the first `pages` pages, best first (SPEC 4.4): int64 ``[H, n]``.

    Parameters
    ----------
    members : [H, M, 2 D]
        From `page_query`.
    n : int
        At most the number of pages that have a valid token.
    """
    chapters = cold.usable_chapters(row, pages, members.shape[1])
    if cold.scanner is None or not chapters or n == pages:
        return rank(cold, row, members, pages, n, group)
    quick, error = cold.scanner.scores(members, chapters)
    seen = quick.shape[2]
    if row.table.empty:
        quick.masked_fill_(row.empty(0, seen), -torch.inf)
    rest = all_scores(cold, row, members, seen, pages)  # [H, M, pages - seen]
    most = None
    if group == "max":
        rough, known = quick.amax(dim=1), rest.amax(dim=1)
        slack = error.amax(dim=1, keepdim=True)
        low, high = rough - slack, rough + slack
    else:
        most = _maxima(cold, row, members, quick, error, rest)  # [H, M, 1]
        # exp(error) bounds the factor between a rough and an exact term; 1e-4 covers the rounding of the sums.
        factor = torch.exp(error.amax(dim=1, keepdim=True) + 1e-4)
        rough, known = group_scores(quick, group, most), group_scores(rest, group, most)
        low, high = rough / factor, rough * factor
    if row.table.empty:
        low, high = (part.masked_fill(row.empty(0, seen), -torch.inf) for part in (low, high))
        known = known.masked_fill(row.empty(seen, pages), -torch.inf)
    threshold = torch.cat([low, known], dim=1).topk(n, dim=1).values[:, -1:]
    sure = None if group == "max" else (threshold > 0).all()
    near = _undecided(cold, high, high >= threshold, sure)
    if near is None:
        # So many terms vanish that scores of zero decide, by the order of the pages: no bound can help.
        return rank(cold, row, members, pages, n, group)
    near = near.sort(dim=1).values
    cold.counters.pages_pruned += near.numel() // near.shape[1] * (seen - near.shape[1])
    fine = group_scores(exact_scores(cold, row, members, near), group, most)
    picked = near.to(fine.device)
    if row.table.empty:
        fine.masked_fill_(high.gather(1, picked) == -torch.inf, -torch.inf)
    numbers = torch.cat([picked, torch.arange(seen, pages, device=picked.device).expand(picked.shape[0], -1)], dim=1)
    return numbers.gather(1, top(torch.cat([fine, known], dim=1), n))


def _undecided(cold: Cold, high: torch.Tensor, near: torch.Tensor, sure: torch.Tensor | None) -> torch.Tensor | None:
    """The highest of ``[..., I]``, in RAM: in each row as many as are `near` in the row with the most of them.

    More than a row needs are merely scored exactly. None unless `sure`, a bool that the device knows.
    """
    width = near.sum(dim=-1).amax()
    if sure is not None:
        width = torch.where(sure, width, -1)
    if high.device.type == "cpu":
        count = int(width)
        return high.topk(count, dim=-1).indices if count >= 0 else None
    # How many and which ones in one wait, if they are not too many.
    some = high.topk(min(GUESS, high.shape[-1]), dim=-1).indices
    told = cold.transfer.fetch(torch.cat([some.flatten(), width[None]]))
    count = int(told[-1])
    if count < 0:
        return None
    if count > some.shape[-1]:
        return cold.transfer.fetch(high.topk(count, dim=-1).indices)
    return told[:-1].view(some.shape)[..., :count]


def _maxima(
    cold: Cold, row: ColdRow, members: torch.Tensor, quick: torch.Tensor, error: torch.Tensor, rest: torch.Tensor
) -> torch.Tensor:
    """The exact maximum over all pages of each member's score, ``[H, M, 1]``."""
    heads, count, _ = members.shape
    best = quick.amax(dim=2, keepdim=True)  # [H, M, 1]
    picked = _undecided(cold, quick, quick >= best - 2 * error[:, :, None], None)
    assert picked is not None, "nothing else decides"
    scores = exact_scores(cold, row, members, picked.flatten(1)).view(heads, count, count, picked.shape[2])
    own = scores.diagonal(dim1=1, dim2=2).amax(dim=1)  # [H, M]
    if rest.shape[2]:
        own = torch.maximum(own, rest.amax(dim=2))
    return own[:, :, None]
