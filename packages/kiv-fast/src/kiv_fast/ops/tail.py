"""The tail: what was not selected still counts, by its mass and the mean value of its page (SPEC 5.2, 5.4)."""

from __future__ import annotations

import torch
from torch.nn.functional import embedding, pad, softplus

from .arguments import Found, Queries, Selection, marked
from .estimates import Estimates, joined
from .page_index import PageIndex
from .softmax import LEAST

WEIGHT, POWER = 0.5, 4.0
"""How far, and how steeply, the selection moves the mean values."""

LINEAR = 40.0
"""From here on log(1 + e^x) is x, in float64 too."""


def page_tail(queries: Queries, estimates: Estimates, found: Found, chosen: Selection) -> torch.Tensor:
    """Return logits ``[H, M, N]`` of pages: log-sum-exp over their tokens that were not selected."""
    at, pages = found.at, list[torch.Tensor]()
    # Of candidates the scores take the place of estimates; of the selected ones nothing is left.
    left = queries.cap(found.raw).scatter(2, chosen.every, -torch.inf)
    for chunk in estimates.chunks:
        logits = queries.cap(estimates.of(chunk))
        if found.filled or len(estimates.chunks) > 1:
            # A token more at each end takes what is in other chunks, or nowhere.
            place = (at - (chunk.start - 1)).clamp_(0, chunk.stop - chunk.start + 1)
            logits = pad(logits, (1, 1)).scatter_(2, place[:, None].expand_as(left), left)[:, :, 1:-1]
        else:
            logits = logits.scatter(2, at[:, None].expand_as(left), left)
        pages.append(logits.view(*logits.shape[:2], -1, estimates.index.page_tokens).logsumexp(dim=3))
    return joined(pages, 2)


def unread_sums(queries: Queries, estimates: Estimates, candidates: torch.Tensor, heads: slice) -> torch.Tensor:
    """Return logarithms of the pages' sums of e^{cap(estimate)} over the tokens that are no candidates, ``[n, M, N]``.

    `candidates` ``[n, K]`` are those of the heads; -1 is none.
    """
    read, pages = marked(candidates, estimates.index.tokens)[:, None], list[torch.Tensor]()
    for chunk in estimates.chunks:
        logits = queries.cap(estimates.of(chunk)[heads])
        logits = logits.masked_fill(read[:, :, chunk.start : chunk.stop], -torch.inf)
        pages.append(logits.view(*logits.shape[:2], -1, estimates.index.page_tokens).logsumexp(dim=3))
    return joined(pages, 2)


def value_shift(chosen: Selection, logits: torch.Tensor, values: torch.Tensor, index: PageIndex) -> torch.Tensor:
    """Return what each query adds to the mean values of pages, but for `WEIGHT`, ``[H, M, DV]`` (SPEC 5.4).

    Parameters
    ----------
    chosen : Selection
    logits, values : [H, M, R], [H, R, DV]
        Of its tokens.
    index : PageIndex
    """
    raw, missing = chosen.raw, chosen.missing
    # Mean values lie as pages do, a row of each head in each page.
    deviation = values - embedding(chosen.places // index.page_tokens, index.mean.rows)
    most = raw.amax(dim=2, keepdim=True)
    if missing is None:
        group = torch.logsumexp(raw - most, dim=1, keepdim=True)  # [H, 1, R], log S
        middle = group.mean(dim=2, keepdim=True)
    else:
        deviation = deviation.masked_fill_(missing[:, :, None], 0)
        gone = missing[:, None]
        group = torch.logsumexp(raw - most.clamp_(min=LEAST), dim=1, keepdim=True).masked_fill_(gone, 0)
        middle = group.sum(dim=2, keepdim=True) / (~gone).sum(dim=2, keepdim=True)
    fade = softplus(group - middle, beta=POWER, threshold=LINEAR)  # log(1 + (S / mean)^POWER) / POWER
    return torch.bmm(torch.softmax(logits.sub(fade, alpha=POWER), dim=2), deviation)
