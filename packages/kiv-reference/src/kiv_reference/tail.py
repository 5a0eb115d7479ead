"""The tail: what was not selected still counts, by its mass and its mean value (SPEC 5.2, 5.3, 5.5)."""

from __future__ import annotations

import torch

from .attend import Modifiers, Pseudo
from .config import KIVConfig
from .summary import summarise_spans
from .view import HeadView

SHIFT_WEIGHT, SHIFT_POWER = 0.5, 4.0
"""How far, and how steeply, the selection moves the mean values (SPEC 5.5)."""


def leftovers(view: HeadView, candidates: torch.Tensor, selected: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
    """Candidate pages with tokens that were not selected: (page, those positions), in the order of `candidates`."""
    pairs: list[tuple[int, torch.Tensor]] = []
    for page in candidates.tolist():
        positions = view.page_positions(page)
        rest = positions[~torch.isin(positions, selected)]
        if rest.numel():
            pairs.append((page, rest))
    return pairs


def value_shift(query: torch.Tensor, view: HeadView, selected: torch.Tensor, modifiers: Modifiers) -> torch.Tensor:
    """What each query ``[G, TQ, D]`` of the block adds to mean values of candidates: ``[G, TQ, DV]`` (SPEC 5.5)."""
    if selected.numel() == 0:
        return query.new_zeros(*query.shape[:2], view.value_mean.shape[1])
    keys = view.keys(selected)
    scores = modifiers.scale * (query.flatten(0, 1) @ keys.T)  # [M, R]
    group = torch.logsumexp(scores - scores.amax(dim=1, keepdim=True), dim=0)  # [R], log S
    fade = torch.nn.functional.logsigmoid(-SHIFT_POWER * (group - group.mean()))
    weights = torch.softmax(modifiers.logits(query, keys) + fade, dim=2)
    page = (selected - view.partition.cold_start) // view.partition.page_tokens
    return SHIFT_WEIGHT * (weights @ (view.values(selected) - view.value_mean[page]))


def tail(
    query: torch.Tensor,
    view: HeadView,
    candidates: torch.Tensor,
    selected: torch.Tensor,
    modifiers: Modifiers,
    config: KIVConfig,
) -> Pseudo:
    """One pseudo-token for each candidate page with a leftover, and one for each span with other pages.

    Parameters
    ----------
    query : [G, TQ, D], in the dtype of computation
    candidates : int64 [C], pages
    selected : int64 [R], positions
    """
    logits: list[torch.Tensor] = []
    values: list[torch.Tensor] = []
    for page, rest in leftovers(view, candidates, selected):
        logits.append(torch.logsumexp(modifiers.logits(query, view.keys(rest)), dim=2))
        values.append(view.value_mean[page])
    pages = view.pages()
    others = pages[~torch.isin(pages, candidates)]
    spans = summarise_spans(view.count, view.mean, view.value_mean, others, config.span_pages)
    span_logits = modifiers.logits(query, spans.mean) + torch.log(spans.count.to(query.dtype))  # [G, TQ, M]
    shift = value_shift(query, view, selected, modifiers)
    if not logits:
        return Pseudo(span_logits, spans.value, 0, shift)
    return Pseudo(
        torch.cat([torch.stack(logits, dim=2), span_logits], dim=2),
        torch.cat([torch.stack(values), spans.value]),
        len(values),
        shift,
    )
