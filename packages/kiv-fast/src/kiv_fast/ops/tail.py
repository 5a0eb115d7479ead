"""The tail: what was not selected still counts, by its mass and the mean value of its page (SPEC 5.2, 5.4)."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from .arguments import Found, Queries, marked
from .estimates import Estimates, joined
from .softmax import LEAST, Part

WEIGHT, POWER = 0.5, 4.0
"""How far, and how steeply, the selection moves the mean values."""


def page_tail(queries: Queries, estimates: Estimates, found: Found, means: torch.Tensor) -> Part:
    """One pseudo-token for each page with tokens that were not selected; `means` are the pages' ``[H, N, DV]``."""
    size, rest = estimates.index.page_tokens, unread_sums(queries, estimates, found.candidates, slice(None))
    left = queries.cap(found.scores).masked_fill(found.selected[:, None], -torch.inf)
    page = (found.candidates.clamp(min=0) // size)[:, None].expand_as(left)
    most = torch.full_like(rest, LEAST).scatter_reduce_(2, page, left, "amax")
    mass = torch.zeros_like(rest).scatter_add_(2, page, torch.exp(left - most.gather(2, page)))
    return Part(torch.logaddexp(rest, mass.log_().add_(most)), means)


def unread_sums(queries: Queries, estimates: Estimates, candidates: torch.Tensor, heads: slice) -> torch.Tensor:
    """Logarithms of the pages' sums of e^{cap(estimate)} over the tokens that are no candidates, ``[n, M, N]``.

    `candidates` ``[n, K]`` are those of the heads; -1 is none.
    """
    read = marked(candidates, estimates.index.tokens)
    parts: list[torch.Tensor] = []
    for chunk, part in estimates.all():
        logits = queries.cap(part[heads]).masked_fill(read[:, None, chunk.start : chunk.stop], -torch.inf)
        parts.append(_log_sums(logits.unflatten(2, (-1, estimates.index.page_tokens))))
    return joined(parts, 2)


def _log_sums(logits: torch.Tensor) -> torch.Tensor:
    """Logarithm of the sum of exponentials over the last axis, which is overwritten: torch's own takes longer."""
    most = logits.amax(dim=-1, keepdim=True).clamp_(min=LEAST)
    return logits.sub_(most).exp_().sum(dim=-1).log_().add_(most[..., 0])


def value_shift(
    raw: torch.Tensor, logits: torch.Tensor, deviation: torch.Tensor, missing: torch.Tensor | None
) -> torch.Tensor:
    """What each query adds to the mean values of pages, ``[H, M, DV]`` (SPEC 5.4).

    Parameters
    ----------
    raw, logits : [H, M, R]
        Scores of the selected tokens for all members, and what the soft cap makes of them.
    deviation : [H, R, DV]
        Of their values from the mean values of their pages.
    missing : bool [H, R], or None
        Entries that only fill up a row.
    """
    if missing is not None:
        raw = raw.masked_fill(missing[:, None], -torch.inf)
        deviation = deviation.masked_fill_(missing[:, :, None], 0)
    most = raw.amax(dim=2, keepdim=True).clamp_(min=LEAST)
    group = torch.logsumexp(raw - most, dim=1)  # [H, R], log S
    if missing is None:
        middle = group.mean(dim=1, keepdim=True)
    else:
        group = group.masked_fill_(missing, 0)
        middle = group.sum(dim=1, keepdim=True) / (~missing).sum(dim=1, keepdim=True).clamp(min=1)
    fade = logsigmoid((group - middle).mul_(-POWER))
    weights = torch.softmax(logits + fade[:, None], dim=2)
    if missing is not None:
        weights = weights.masked_fill_(missing[:, None], 0)  # a row of nothing else is not a number before
    return torch.bmm(weights, deviation).mul_(WEIGHT)
