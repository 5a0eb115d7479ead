"""The tail: what was not selected still counts, by its mass and its mean value (SPEC 5.2, 5.3)."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .attend import Less, Part, Queries
from .cold import Cold
from .lookup import Spans
from .rows import ColdRow


class Touched(NamedTuple):
    """Spans whose summary does not serve as it is: those with candidates."""

    spans: torch.Tensor  # int64 [H, A], ascending
    first: torch.Tensor  # bool [H, A], False where an entry repeats the one before it, or stands for nothing


def span_tail(
    cold: Cold,
    row: ColdRow,
    queries: Queries,
    pages: int,
    candidates: torch.Tensor,
    page_values: torch.Tensor,
) -> list[Part]:
    """One pseudo-token for each span that has pages beside the candidates (SPEC 5.3).

    A span of which at least half remains is its summary less its candidates, where pages are alike in size; the others
    are merged anew from the pages that remain, since a small difference of large sums is not exact.

    Parameters
    ----------
    pages : int
        N, the pages of the partition.
    candidates : int64 [H, C]
        Candidate pages, ascending; -1 fills up rows.
    page_values : [H, C, DV]
        Their mean values.
    """
    numbers = torch.where(candidates < 0, -1, torch.div(candidates, cold.config.span_pages, rounding_mode="floor"))
    first = numbers >= 0
    first[:, 1:] &= numbers[:, 1:] != numbers[:, :-1]
    touched = Touched(numbers, first)
    spans = cold.spans(row, pages)
    parts: list[Part] = []
    if row.sizes.alike >= pages:
        part, touched = _differences(cold, row, queries, spans, candidates, page_values, touched)
        parts.append(part)
    else:
        parts.append(_untouched(queries, spans, touched))
    if touched.spans.shape[1]:
        parts.append(_merged(cold, row, queries, pages, candidates, touched))
    return parts


def _untouched(queries: Queries, spans: Spans, touched: Touched) -> Part:
    """The spans without a candidate."""
    logits = queries.logits(spans.key) + torch.log(spans.tokens)
    heads, _, known = logits.shape
    # A column more than there are spans takes what stands for none.
    skip = torch.zeros(heads, known + 1, dtype=torch.bool, device=logits.device)
    skip.scatter_(1, touched.spans % (known + 1), True)
    return Part(logits.masked_fill_(skip[:, None, :known], -torch.inf), spans.value)


def _differences(
    cold: Cold,
    row: ColdRow,
    queries: Queries,
    spans: Spans,
    candidates: torch.Tensor,
    page_values: torch.Tensor,
    touched: Touched,
) -> tuple[Part, Touched]:
    """Spans as their summaries less their candidates, and the touched ones for which that would not be exact.

    A span of n tokens less pages of n_j has mean ``(n mean - sum of n_j mean_j) / (n - sum of n_j)``. Scores are linear
    in the key, so they are subtracted, not the keys; and the values of pages are subtracted in the output (`Less`).
    """
    heads, count = candidates.shape
    known, width = spans.key.shape[1], cold.shape.key_width
    raw = queries.raw(spans.key)  # [H, M, known]
    owner = touched.spans % (known + 1)  # a column more than there are spans takes what stands for none
    pages = candidates.clamp(min=0)
    units = cold.units(row, pages).view(-1)
    keys = cold.gather(cold.index.keys, 2 * units, width).view(heads, count, width)
    tokens = cold.counts(row, pages).to(spans.tokens.dtype)
    taken = tokens.new_zeros(heads, known + 1).scatter_add_(1, owner, tokens)[:, :known]
    mine = queries.raw(keys).mul_(tokens[:, None])
    sums = raw.new_zeros(heads, raw.shape[1], known + 1)
    sums.scatter_add_(2, owner[:, None].expand_as(mine), mine)
    left = spans.tokens - taken  # [H, known]
    served = 2 * taken <= spans.tokens
    inverse = torch.where(served & (left > 0), 1 / left, 0)
    raw.mul_(spans.tokens).sub_(sums[:, :, :known]).mul_(inverse[:, None])
    logits = queries.cap(raw).add_(torch.log(torch.where(served, left, 0))[:, None])
    owner = owner.clamp(max=known - 1)
    share = torch.where(candidates < 0, 0, inverse.gather(1, owner) * tokens)
    less = Less((inverse * spans.tokens)[:, None], owner, share[:, None], page_values)
    most = count
    if not row.table.padded:  # of spans of equal pages, all but the last one lack more than half only for as many
        most = min(count, 1 + count // (cold.config.span_pages // 2 + 1))
    return Part(logits, spans.value, less), _remaining(touched, served.gather(1, owner), most, cold.transfer.immediate)


def _remaining(touched: Touched, served: torch.Tensor, most: int, immediate: bool) -> Touched:
    """The touched spans that were not served, side by side; `most` entries where it would take a wait to count them."""
    first = touched.first & ~served
    width = int(first.sum(dim=1).max()) if immediate else most
    order = first.to(torch.uint8).topk(width, dim=1).indices.sort(dim=1).values
    return Touched(touched.spans.gather(1, order), first.gather(1, order))


def _merged(
    cold: Cold,
    row: ColdRow,
    queries: Queries,
    pages: int,
    candidates: torch.Tensor,
    touched: Touched,
) -> Part:
    """Pseudo-tokens of touched spans, merged from their pages beside the candidates."""
    heads, device = candidates.shape[0], candidates.device
    size = min(cold.config.span_pages, pages)  # of the only span there is, where it is not yet full
    numbers = touched.spans[:, :, None] * size + torch.arange(size, device=device)  # [H, A, size]
    taken = torch.zeros(heads, pages + 1, dtype=torch.bool, device=device)
    taken.scatter_(1, torch.where(candidates < 0, pages, candidates), True)
    inside = (numbers >= 0) & (numbers < pages) & touched.first[:, :, None]
    numbers = numbers.clamp(0, pages - 1).flatten(1)
    weights = (
        cold.counts(row, numbers).masked_fill(taken.gather(1, numbers) | ~inside.flatten(1), 0).to(cold.shape.compute)
    )
    weights = weights.view(heads, -1, size)
    total = weights.sum(dim=2)  # [H, A]
    weights /= total.clamp(min=1)[:, :, None]

    units = cold.units(row, numbers).view(-1)
    width, value_width = cold.shape.key_width, cold.shape.value_width
    mean = cold.gather(cold.index.keys, 2 * units, width).view(-1, size, width)
    value = cold.gather(cold.index.values, units, value_width).view(-1, size, value_width)
    flat = weights.view(-1, 1, size)
    if row.sizes.finite < pages:
        value = value.masked_fill(flat.transpose(1, 2) == 0, 0)
    key = (flat @ mean).view(heads, -1, width)
    logits = queries.logits(key) + torch.log(total)[:, None]
    return Part(logits, (flat @ value).view(heads, -1, value_width))


def page_values(cold: Cold, row: ColdRow, candidates: torch.Tensor) -> torch.Tensor:
    """Mean values ``[H, C, DV]`` of candidate pages int64 ``[H, C]``; -1 fills up rows."""
    units = cold.units(row, candidates.clamp(min=0)).view(-1)
    width = cold.shape.value_width
    return cold.gather(cold.index.values, units, width).view(*candidates.shape, width)


def page_tail(
    logits: torch.Tensor,
    selected: torch.Tensor,
    values: torch.Tensor,
    page_tokens: int,
    terms: torch.Tensor | None = None,
) -> Part:
    """One pseudo-token for each candidate page with tokens that were not selected (SPEC 5.2).

    Parameters
    ----------
    logits : [H, M, C * P]
        Of the candidates' tokens, minus infinity where a token is invalid.
    selected : bool [H, C * P]
    values : [H, C, DV]
        Mean values of the pages.
    terms : [H, M, C * P], optional
        e to the power of logits less the largest of a member, if they are known; not to be used afterwards. What is
        lost to underflow in them would weigh nothing: for finite values only.
    """
    pages = values.shape[1], page_tokens
    if terms is None:
        left = logits.masked_fill(selected[:, None], -torch.inf).unflatten(2, pages)
        return Part(torch.logsumexp(left, dim=3), values)
    mass = terms.masked_fill_(selected[:, None], 0).unflatten(2, pages).sum(dim=3)
    return Part(mass.log_().add_(logits.amax(dim=2, keepdim=True)), values)
