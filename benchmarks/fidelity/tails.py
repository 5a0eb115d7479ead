"""Tails: how what was not selected still counts, as pseudo-tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from kiv_reference.config import KIVConfig

from .scene import Scene

_DEFAULT = KIVConfig()
SPAN_TOKENS = _DEFAULT.span_pages * _DEFAULT.page_tokens

Near = Literal["exact", "mean"]
NearValue = Literal["page", "rest"]
SpanMass = Literal["span", "pages"]


class Pseudo(NamedTuple):
    """M pseudo-tokens for each choice; G' is 1 where the heads of a group choose together."""

    logits: torch.Tensor  # [H, Q, G, M]
    values: torch.Tensor  # [H, 1 or Q, 1 or G', M, DV]
    shift: torch.Tensor | None = None  # [H, Q, G, DV], added to every value


@dataclass(frozen=True)
class Tail:
    """A tail; the default is that of SPEC 5.2, 5.3 and 5.5.

    Attributes
    ----------
    near : "exact" or "mean"
        Mass of the unselected tokens of a candidate page: their log-sum-exp (SPEC 5.2), or by the page's mean key.
    span_tokens : int, or None
        Tokens of a span (SPEC 5.3); None keeps one pseudo-token for each page.
    near_value : "page" or "rest"
        Value of a candidate page's pseudo-token: the mean of all its tokens (SPEC 5.2), or of the unselected ones,
        whose sum is that of all less that of the selected, both known.
    span_mass : "span" or "pages"
        Mass of a span: by its mean key (SPEC 5.3), or the sum over its pages by theirs, known from the page scores.
    next_tokens : int
        Tokens of the best pages after the candidates that get a pseudo-token each, by their mean key and value.
    shift, shift_power : float
        Weight of the correction that the selection suggests, and how steeply what ranked high in it fades
        (`selection_shift`).
    """

    near: Near = "exact"
    span_tokens: int | None = SPAN_TOKENS
    near_value: NearValue = "page"
    span_mass: SpanMass = "span"
    next_tokens: int = 0
    shift: float = 0.5
    shift_power: float = 4.0


class Chosen(NamedTuple):
    """What a rule chose, as its tail needs to know it.

    Attributes
    ----------
    candidates, following : bool [H, Q, G', N]
        The candidate pages, and those after them that get a pseudo-token each.
    selected : bool [H, Q, G', T']
        The selected cold tokens.
    logits : [H, Q, G, T']
        Of the cold tokens, as the rule knows them.
    """

    candidates: torch.Tensor
    following: torch.Tensor
    selected: torch.Tensor
    logits: torch.Tensor


def selection_shift(scene: Scene, chosen: Chosen, page: int, tail: Tail) -> torch.Tensor:
    """What the selection tells of the values that were not selected, ``[H, Q, G, DV]`` (SPEC 5.5)."""
    values = scene.paged_values(page)
    deviation = (values - values.mean(dim=2, keepdim=True)).flatten(1, 2)  # [H, T', DV]
    logits = scene.cold_logits.masked_fill(~chosen.selected, -math.inf)
    group = logits - logits.amax(dim=3, keepdim=True)
    if chosen.selected.shape[2] == 1:
        group = group.logsumexp(dim=2, keepdim=True)
    group = group.masked_fill(~chosen.selected, 0)
    middle = group.sum(dim=3, keepdim=True) / chosen.selected.sum(dim=3, keepdim=True).clamp(min=1)
    fade = torch.nn.functional.logsigmoid(-tail.shift_power * (group - middle))
    weights = torch.nan_to_num((logits + fade).softmax(dim=3))  # a selection of nothing has no shift
    return tail.shift * torch.einsum("hqgt,htv->hqgv", weights, deviation)


def candidate_tail(scene: Scene, chosen: Chosen, page: int, tail: Tail) -> Pseudo:
    """One pseudo-token for each candidate page with an unselected token (SPEC 5.2)."""
    values = scene.paged_values(page)  # [H, N, P, DV]
    rest = ~chosen.selected.unflatten(3, (-1, page)) & chosen.candidates[..., None]  # [H, Q, G', N, P]
    if tail.near == "exact":
        logits = chosen.logits.unflatten(3, (-1, page)).masked_fill(~rest, -math.inf).logsumexp(dim=4)
    else:
        logits = _mean_logits(scene, page) + rest.sum(dim=4).log()
    if tail.near_value == "page":
        value = values.mean(dim=2)[:, None, None]  # [H, 1, 1, N, DV]
    else:
        share = rest / rest.sum(dim=4, keepdim=True).clamp(min=1)
        value = torch.einsum("hqgnp,hnpv->hqgnv", share, values)
    return Pseudo(logits, value, selection_shift(scene, chosen, page, tail) if tail.shift else None)


def page_tail(scene: Scene, pages: torch.Tensor, page: int) -> Pseudo:
    """One pseudo-token for each page that ``pages`` bool [H, Q, G', N] names, by its mean key and value."""
    logits = (_mean_logits(scene, page) + math.log(page)).masked_fill(~pages, -math.inf)
    return Pseudo(logits, scene.paged_values(page).mean(dim=2)[:, None, None])


def span_tail(scene: Scene, others: torch.Tensor, page: int, span_tokens: int, mass: SpanMass) -> Pseudo:
    """One pseudo-token a span, over those of its pages that ``others`` bool [H, Q, G', N] names (SPEC 5.3)."""
    span = span_tokens // page
    mean, value = scene.paged_keys(page).mean(dim=2), scene.paged_values(page).mean(dim=2)
    page_logits = _mean_logits(scene, page).masked_fill(~others, -math.inf)
    short = -mean.shape[1] % span
    if short:  # the last span is shorter: pages that no one names fill it up
        mean, value = (torch.nn.functional.pad(x, (0, 0, 0, short)) for x in (mean, value))
        others = torch.nn.functional.pad(others, (0, short))
        page_logits = torch.nn.functional.pad(page_logits, (0, short), value=-math.inf)
    weight = others.unflatten(3, (-1, span)).float()  # [H, Q, G', M, s]
    count = weight.sum(dim=4)  # pages
    share = weight / count.clamp(min=1)[..., None]
    span_value = torch.einsum("hqgms,hmsv->hqgmv", share, value.unflatten(1, (-1, span)))
    if mass == "pages":
        return Pseudo(page_logits.unflatten(3, (-1, span)).logsumexp(dim=4) + math.log(page), span_value)
    span_mean = torch.einsum("hqgms,hmsd->hqgmd", share, mean.unflatten(1, (-1, span)))
    span_mean = span_mean.expand(-1, -1, scene.query.shape[2], -1, -1)
    logits = scene.scale * torch.einsum("hqgd,hqgmd->hqgm", scene.query, span_mean)
    return Pseudo(logits + (count * page).log(), span_value)


def tail_tokens(scene: Scene, chosen: Chosen, page: int, tail: Tail) -> list[Pseudo]:
    """All pseudo-tokens of a tail."""
    parts = [candidate_tail(scene, chosen, page, tail)]
    single = chosen.following if tail.span_tokens is not None else ~chosen.candidates
    if bool(single.any()):
        parts.append(page_tail(scene, single, page))
    if tail.span_tokens is not None:
        others = ~(chosen.candidates | chosen.following)
        parts.append(span_tail(scene, others, page, tail.span_tokens, tail.span_mass))
    return parts


def _mean_logits(scene: Scene, page: int) -> torch.Tensor:
    """Logits of the pages' mean keys, ``[H, Q, G, N]``."""
    return scene.scale * torch.einsum("hqgd,hnd->hqgn", scene.query, scene.paged_keys(page).mean(dim=2))
