"""What the selection tells of the values that were not selected (SPEC 5.5)."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from .attend import LEAST

WEIGHT, POWER = 0.5, 4.0


def value_shift(
    raw: torch.Tensor,
    logits: torch.Tensor,
    values: torch.Tensor,
    page: torch.Tensor,
    means: torch.Tensor,
    missing: torch.Tensor | None,
) -> torch.Tensor:
    """What each query adds to the mean values of candidate pages, ``[H, M, DV]``.

    Parameters
    ----------
    raw, logits : [H, M, R]
        Scores of the selected tokens for all members, and what the soft cap makes of them.
    values : [H, R, DV]
    page : int64 [H, R]
        Of each token, which row of `means` is its page's.
    means : [H, C, DV]
        Mean values of the candidate pages.
    missing : bool [H, R], or None
        Entries that only fill up a row.
    """
    deviation = values - means.gather(1, page[:, :, None].expand(-1, -1, means.shape[2]))
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
    return (weights @ deviation).mul_(WEIGHT)
