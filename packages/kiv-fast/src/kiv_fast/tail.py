"""The tail: what was not selected still counts, by its mass and its mean value (SPEC 5.2, 5.3)."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .attend import Part, Queries
from .cold import Cold, Spans
from .rows import ColdRow


class Touched(NamedTuple):
    """Spans whose summary does not serve as it is: those with candidates, and a last one that is not full; in RAM."""

    spans: torch.Tensor  # int64 [H, A], ascending
    first: torch.Tensor  # bool [H, A], False where an entry repeats the one before it, or stands for nothing


def span_tail(
    cold: Cold, row: ColdRow, queries: Queries, pages: int, candidates: torch.Tensor, finite: bool
) -> list[Part]:
    """One pseudo-token for each span that has pages beside the candidates (SPEC 5.3).

    Spans without a candidate have a summary of their own. Of the others, those of which at least half remains are the
    summary less the candidates; the rest are merged anew from the pages that remain, since a small difference of large
    sums is not exact.

    Parameters
    ----------
    pages : int
        N, the pages of the partition.
    candidates : int64 [H, C]
        Candidate pages, ascending, in RAM, where all that follows from them is counted; -1 fills up rows.
    finite : bool
        Whether every mean value is finite, so that differences of them are.
    """
    size, heads = cold.config.span_pages, candidates.shape[0]
    full = pages // size
    numbers = torch.where(candidates < 0, -1, torch.div(candidates, size, rounding_mode="floor"))
    if pages % size:
        numbers = torch.cat([numbers, numbers.new_full((heads, 1), full)], dim=1)
    if not numbers.shape[1]:
        return [_whole(queries, cold.spans(row, full), None)] if full else []
    first = numbers >= 0
    first[:, 1:] &= numbers[:, 1:] != numbers[:, :-1]
    touched = Touched(numbers, first)
    if not full:
        return [_merged(cold, row, queries, pages, candidates, touched, finite)]
    spans = cold.spans(row, full)
    parts = [_whole(queries, spans, touched)]
    if finite and not row.table.padded and size > 1:
        part, touched = _less(cold, row, queries, spans, candidates, touched)
        parts.append(part)
    if touched.spans.shape[1]:
        parts.append(_merged(cold, row, queries, pages, candidates, touched, finite))
    return parts


def _whole(queries: Queries, spans: Spans, touched: Touched | None) -> Part:
    """The spans as they are, without the touched ones."""
    logits = queries.logits(spans.key) + spans.log_count
    if touched is not None:
        heads, _, full = logits.shape
        # Two columns more than there are spans take a span that is not full and what stands for none.
        skip = torch.zeros(heads, full + 2, dtype=torch.bool)
        skip.scatter_(1, touched.spans % (full + 2), True)
        logits.masked_fill_(skip[:, None, :full].to(logits.device), -torch.inf)
    return Part(logits, spans.value)


def _less(
    cold: Cold, row: ColdRow, queries: Queries, spans: Spans, ordered: torch.Tensor, touched: Touched
) -> tuple[Part, Touched]:
    """Touched spans as their summary less their candidates, and those for which that would not be exact.

    Every page is full here: a span of n pages less c of them has mean ``(n mean - sum of the c means) / (n - c)``.
    """
    size, heads = cold.config.span_pages, ordered.shape[0]
    full = spans.key.shape[1]
    own = torch.where(ordered < 0, -1, torch.div(ordered, size, rounding_mode="floor"))
    inside = (touched.spans[:, :, None] == own[:, None]) & (own >= 0)[:, None]  # [H, A, C]
    mix = inside.to(cold.shape.compute)
    count = mix.sum(dim=2)
    served = touched.first & (touched.spans < full) & (2 * count <= size)
    pages = row.units(ordered.clamp(min=0)).view(-1)
    whole = row.span_units(touched.spans.clamp(0, full - 1)).view(-1)
    index, device = cold.index, cold.shape.device
    mix, whole, left = mix.to(device), whole.to(device), (size - count).clamp(min=1).to(device)
    means: list[torch.Tensor] = []
    for table, summary, stride in ((index.keys, index.span_keys, 2), (index.values, index.span_values, 1)):
        width = summary.tensor.shape[2]
        taken = cold.gather(table, stride * pages, width).view(heads, -1, width)
        sums = summary.tensor.view(-1, width).index_select(0, whole).view(heads, -1, width).mul_(size)
        means.append(torch.baddbmm(sums, mix, taken, alpha=-1).div_(left[:, :, None]))
    logits = queries.logits(means[0]) + torch.log(left * cold.config.page_tokens)[:, None]
    part = Part(logits.masked_fill_(~served[:, None].to(device), -torch.inf), means[1])
    return part, _remaining(touched, served)


def _remaining(touched: Touched, served: torch.Tensor) -> Touched:
    """The touched spans that were not served, side by side."""
    first = touched.first & ~served
    width = int(first.sum(dim=1).max())
    order = first.to(torch.uint8).topk(width, dim=1).indices.sort(dim=1).values
    return Touched(touched.spans.gather(1, order), first.gather(1, order))


def _merged(
    cold: Cold,
    row: ColdRow,
    queries: Queries,
    pages: int,
    candidates: torch.Tensor,
    touched: Touched,
    finite: bool,
) -> Part:
    """Pseudo-tokens of touched spans, merged from their pages beside the candidates."""
    size, heads = cold.config.span_pages, candidates.shape[0]
    steps = torch.arange(size)
    numbers = touched.spans[:, :, None] * size + steps  # [H, A, size]
    taken = torch.zeros(heads, pages + 1, dtype=torch.bool)
    taken.scatter_(1, torch.where(candidates < 0, pages, candidates), True)
    inside = (numbers >= 0) & (numbers < pages) & touched.first[:, :, None]
    numbers = numbers.clamp(0, pages - 1).flatten(1)
    full = cold.config.page_tokens
    counts = row.host_counts(0, pages)[numbers] if row.table.padded else torch.full_like(numbers, full)
    weights = counts.masked_fill(taken.gather(1, numbers) | ~inside.flatten(1), 0).to(cold.shape.compute)
    weights = weights.view(heads, -1, size)
    total = weights.sum(dim=2)  # [H, A]
    weights /= total.clamp(min=1)[:, :, None]

    units = row.units(numbers).view(-1)
    weights, total = weights.to(cold.shape.device), total.to(cold.shape.device)
    width, value_width = cold.shape.key_width, cold.shape.value_width
    mean = cold.gather(cold.index.keys, 2 * units, width).view(-1, size, width)
    value = cold.gather(cold.index.values, units, value_width).view(-1, size, value_width)
    flat = weights.view(-1, 1, size)
    if not finite:
        value = value.masked_fill(flat.transpose(1, 2) == 0, 0)
    key = (flat @ mean).view(heads, -1, width)
    logits = queries.logits(key) + torch.log(total)[:, None]
    return Part(logits, (flat @ value).view(heads, -1, value_width))


def page_tail(cold: Cold, row: ColdRow, logits: torch.Tensor, candidates: torch.Tensor, selected: torch.Tensor) -> Part:
    """One pseudo-token for each candidate page with tokens that were not selected (SPEC 5.2).

    Parameters
    ----------
    logits : [H, M, C * P]
        Of the candidates' tokens, minus infinity where a token is invalid.
    candidates : int64 [H, C]
        As the pages lie in `logits`, in RAM; -1 fills up rows.
    selected : bool [H, C * P]
    """
    heads, members, _ = logits.shape
    size = cold.config.page_tokens
    left = logits.masked_fill(selected[:, None], -torch.inf).view(heads, members, candidates.shape[1], size)
    value_width = cold.shape.value_width
    units = row.units(candidates.clamp(min=0)).view(-1)
    values = cold.gather(cold.index.values, units, value_width).view(*candidates.shape, value_width)
    return Part(torch.logsumexp(left, dim=3), values)
