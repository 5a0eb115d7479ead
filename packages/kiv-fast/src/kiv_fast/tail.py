"""The tail: what was not selected still counts, by its mass and its mean value (SPEC 5.2, 5.3)."""

from __future__ import annotations

import torch

from .attend import Part, Queries
from .cold import Cold, ColdRow


def span_tail(
    cold: Cold, row: ColdRow, queries: Queries, pages: int, candidates: torch.Tensor, finite: bool
) -> list[Part]:
    """One pseudo-token for each span that has pages beside the candidates (SPEC 5.3).

    Spans without a candidate have a summary of their own. The others, and a last one that is not full, are merged here
    from the pages that remain.

    Parameters
    ----------
    pages : int
        N, the pages of the partition.
    candidates : int64 [H, C]
        Candidate pages; -1 fills up rows.
    """
    size, heads = cold.config.span_pages, candidates.shape[0]
    full = pages // size
    touched = torch.where(candidates < 0, -1, torch.div(candidates, size, rounding_mode="floor"))
    if pages % size:
        touched = torch.cat([touched, touched.new_full((heads, 1), full)], dim=1)
    parts: list[Part] = []
    if full:
        spans = cold.spans(row, full)
        logits = queries.logits(spans.key) + spans.log_count
        # One column more than there are spans takes what stands for no span.
        skip = torch.zeros(heads, full + 2, dtype=torch.bool, device=logits.device)
        skip.scatter_(1, touched.clamp(min=-1) % (full + 2), True)
        parts.append(Part(logits.masked_fill_(skip[:, None, :full], -torch.inf), spans.value))
    if touched.shape[1]:
        parts.append(_rest(cold, row, queries, pages, candidates, touched, finite))
    return parts


def _rest(
    cold: Cold,
    row: ColdRow,
    queries: Queries,
    pages: int,
    candidates: torch.Tensor,
    touched: torch.Tensor,
    finite: bool,
) -> Part:
    """Pseudo-tokens of the spans in `touched`, int64 ``[H, A]`` with repetitions and -1, from their other pages."""
    size, heads = cold.config.span_pages, touched.shape[0]
    touched = touched.sort(dim=1).values
    fresh = touched >= 0
    fresh[:, 1:] &= touched[:, 1:] != touched[:, :-1]
    steps = torch.arange(size, device=touched.device)
    numbers = touched[:, :, None] * size + steps  # [H, A, size]
    taken = torch.zeros(heads, pages + 1, dtype=torch.bool, device=touched.device)
    taken.scatter_(1, torch.where(candidates < 0, pages, candidates), True)
    inside = (numbers >= 0) & (numbers < pages) & fresh[:, :, None]
    numbers = numbers.clamp(0, pages - 1).flatten(1)
    counts = row.counts(0, pages)[numbers] if row.table.padded else torch.full_like(numbers, cold.config.page_tokens)
    weights = counts.masked_fill(taken.gather(1, numbers) | ~inside.flatten(1), 0).to(cold.shape.compute)
    weights = weights.view(heads, -1, size)
    total = weights.sum(dim=2)  # [H, A]
    weights /= total.clamp(min=1)[:, :, None]

    units = cold.units(row, numbers).view(-1)
    width, value_width = cold.shape.key_width, cold.shape.value_width
    mean = cold.index.keys.tensor.view(-1, width).index_select(0, 2 * units).view(-1, size, width)
    value = cold.index.values.tensor.view(-1, value_width).index_select(0, units).view(-1, size, value_width)
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
        As the pages lie in `logits`; -1 fills up rows.
    selected : bool [H, C * P]
    """
    heads, members, _ = logits.shape
    size = cold.config.page_tokens
    left = logits.masked_fill(selected[:, None], -torch.inf).view(heads, members, candidates.shape[1], size)
    value_width = cold.shape.value_width
    units = cold.units(row, candidates.clamp(min=0)).view(-1)
    values = cold.index.values.tensor.view(-1, value_width).index_select(0, units).view(*candidates.shape, value_width)
    return Part(torch.logsumexp(left, dim=3), values)
