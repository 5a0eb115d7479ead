"""What is known of a cold page without reading it: count, mean key, spread, mean value (SPEC 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of scores, summaries and sums for a dtype of keys (SPEC 1.2)."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class PageSummary(NamedTuple):
    """One page of one sequence, for every KV head; NaN where the page has no valid token (SPEC 3.1)."""

    mean: torch.Tensor  # [H, D]
    spread: torch.Tensor  # [H, D]
    value: torch.Tensor  # [H, DV]


def summarise(key: torch.Tensor, value: torch.Tensor, valid: torch.Tensor) -> PageSummary:
    """Summarise one page (SPEC 3.1).

    Parameters
    ----------
    key : [H, P, D]
    value : [H, P, DV]
    valid : bool [P]
    """
    dtype = compute_dtype(key.dtype)
    key = key[:, valid].to(dtype)  # [H, n, D]
    value = value[:, valid].to(dtype)  # [H, n, DV]
    if key.shape[1] == 0:
        return PageSummary(
            key.new_full((key.shape[0], key.shape[2]), torch.nan),
            key.new_full((key.shape[0], key.shape[2]), torch.nan),
            value.new_full((value.shape[0], value.shape[2]), torch.nan),
        )
    mean = key.mean(dim=1)
    spread = (key - mean[:, None]).abs().amax(dim=1)
    return PageSummary(mean, spread, value.mean(dim=1))


@dataclass(frozen=True)
class SpanSummary:
    """The chosen pages of each span that has any: M spans of one sequence and KV head (SPEC 3.2)."""

    count: torch.Tensor  # int64 [M]
    mean: torch.Tensor  # [M, D]
    value: torch.Tensor  # [M, DV]


def summarise_spans(
    count: torch.Tensor, mean: torch.Tensor, value: torch.Tensor, pages: torch.Tensor, span_pages: int
) -> SpanSummary:
    """Merge the summaries of the given pages within each span (SPEC 3.2).

    Parameters
    ----------
    count : int64 [N]
    mean : [N, D]
    value : [N, DV]
    pages : int64 [K], ascending, each with count >= 1
    """
    counts: list[torch.Tensor] = []
    means: list[torch.Tensor] = []
    values: list[torch.Tensor] = []
    for span in torch.unique(pages // span_pages):
        members = pages[pages // span_pages == span]
        weight = count[members].to(mean.dtype) / count[members].sum()  # [k]
        counts.append(count[members].sum())
        means.append((weight[:, None] * mean[members]).sum(dim=0))
        values.append((weight[:, None] * value[members]).sum(dim=0))
    if not counts:
        return SpanSummary(count[:0], mean[:0], value[:0])
    return SpanSummary(torch.stack(counts), torch.stack(means), torch.stack(values))
