"""Which pages and which tokens a query block retrieves (SPEC 4), all KV heads at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from kiv_reference.config import Group

from .ranking import largest, top

if TYPE_CHECKING:
    from .cold import Cold
    from .rows import ColdRow
    from .transfer import Reply

LEAST_SCORE = 1e-30
"""Group scores below this have lost terms to underflow."""


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
    return scores.amax(dim=1) if group == "max" else group_terms(scores, most).sum(dim=1)


def group_terms(scores: torch.Tensor, most: torch.Tensor | None = None) -> torch.Tensor:
    """What the group rule "exp_sum" adds up: arguments as for `group_scores`, result as `scores`."""
    return torch.exp(scores - (scores.amax(dim=2, keepdim=True) if most is None else most))


def page_query(query: torch.Tensor, scale: float, spread_weight: float) -> torch.Tensor:
    """``u`` with page score ``u . [mean, spread]`` (SPEC 4.2), of queries ``[H, M, D]``: ``[H, M, 2 D]``."""
    return torch.cat([query, query.abs().mul_(spread_weight)], dim=2).mul_(scale)


def exact_scores(cold: Cold, row: ColdRow, members: torch.Tensor, pages: torch.Tensor) -> torch.Tensor:
    """Scores ``[H, M, K]`` of some pages of a row, int64 ``[H, K]``, each head its own."""
    heads, count = pages.shape
    cold.counters.pages_scored += heads * count
    width = members.shape[2]
    picked = cold.gather(cold.index.keys, cold.units(row, pages).view(-1), width).view(heads, count, width)
    return members @ picked.transpose(1, 2)


def all_scores(cold: Cold, row: ColdRow, members: torch.Tensor, first: int, stop: int) -> torch.Tensor:
    """Scores ``[H, M, stop - first]`` of the pages ``[first, stop)``; minus infinity where a page is empty."""
    cold.counters.pages_scored += members.shape[0] * (stop - first)
    scores = members @ cold.upload_summaries(row, first, stop).permute(1, 2, 0)
    if row.table.empty:
        scores.masked_fill_(row.empty(first, stop), -torch.inf)
    return scores


def rank(cold: Cold, row: ColdRow, members: torch.Tensor, pages: int, n: int, group: Group) -> torch.Tensor:
    """The `n` best of the first `pages` pages, best first, by exact scores of all: int64 ``[H, n]``."""
    scores = group_scores(all_scores(cold, row, members, 0, pages), group)
    if row.table.empty:
        scores.masked_fill_(row.empty(0, pages), -torch.inf)
    return top(scores, n)


def candidates(
    cold: Cold,
    row: ColdRow,
    members: torch.Tensor,
    pages: int,
    n: int,
    group: Group,
    later: list[Reply] | None = None,
) -> torch.Tensor:
    """The `n` best of the first `pages` pages, best first (SPEC 4.4): int64 ``[H, n]``.

    Parameters
    ----------
    members : [H, M, 2 D]
        From `page_query`.
    n : int
        At most the number of pages that have a valid token.
    later : list of Reply, optional
        The first look is taken for enough, and whether it was not is asked here: True if these need not be the best.
    """
    scanner, chapters = cold.chapters.scanner, cold.chapters.usable(row, pages)
    if scanner is None or not chapters or n == pages:
        return rank(cold, row, members, pages, n, group)
    quick, error = scanner.scores(members, chapters)
    seen = quick.shape[2]
    if row.table.empty:
        quick.masked_fill_(row.empty(0, seen), -torch.inf)
    rest = all_scores(cold, row, members, seen, pages)  # [H, M, pages - seen]
    best = quick.amax(dim=2, keepdim=True)  # [H, M, 1]
    terms = group_terms(quick, best) if group == "exp_sum" else quick
    rough = (torch.exp(error)[:, None] @ terms)[:, 0] if group == "exp_sum" else terms.amax(dim=1)  # [H, seen]
    # Whatever may be the maximum of a member, by which all terms are scaled, is looked at first and in any case.
    rough.masked_fill_((quick >= best - 2 * error[:, :, None]).any(dim=1), torch.inf)
    after = torch.arange(seen, pages, device=members.device).expand(rough.shape[0], -1)
    width = min(seen, cold.tuning.look_pages * n)
    while True:
        # The pages that look best, as they are: their scores give the threshold that others must be able to reach.
        picked = largest(rough, width)
        known = torch.cat([exact_scores(cold, row, members, picked), rest], dim=2)
        looked = torch.cat([picked, after], dim=1)
        empty = None
        if row.table.empty:
            empty = cold.counts(row, looked) == 0
            known.masked_fill_(empty[:, None], -torch.inf)
        most = known.amax(dim=2, keepdim=True)
        scores = group_scores(known, group, most)
        if empty is not None:  # beside an empty page's, the terms of others may have lost everything to underflow
            scores.masked_fill_(empty, -torch.inf)
        chosen = top(scores, n)
        if width == seen:
            break
        threshold = scores.gather(1, chosen[:, -1:])  # [H, 1]
        if group == "max":
            high = (quick + error[:, :, None]).amax(dim=1)
        else:
            # exp(error) bounds the factor between a rough and an exact term; 1e-4 covers the rounding of the sums.
            high = (torch.exp(best + error[:, :, None] + 1e-4 - most).transpose(1, 2) @ terms)[:, 0]
            # A threshold that has lost terms to underflow excludes nothing.
            high.masked_fill_((rough == torch.inf) | (threshold < LEAST_SCORE), torch.inf)
        # A bound that has overflowed may not be a number: it excludes nothing either.
        more = ~(high.scatter_(1, picked, -torch.inf).amax(dim=1, keepdim=True) < threshold).all()
        if later is not None:
            later.append(cold.transfer.ask(more))
            break
        if not bool(cold.transfer.fetch(more)):
            break
        width = min(seen, 2 * width)
    cold.counters.pages_pruned += looked.shape[0] * (seen - width)
    return looked.gather(1, chosen)
