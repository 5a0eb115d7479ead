"""Attention outputs: sinks, the selected cold tokens and hot exactly, the rest of the cold tokens by a tail."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from .pages import mean_spread
from .quantisers import by_channel
from .ranking import group_scores, mask
from .scene import PAGE_TOKENS, Scene
from .zoo import TODAY_PAGE_TOKENS, four_bit_keys

SPAN_PAGES = 32
"""Pages of a span in the tail that KIV had before."""

SHIFT, SHIFT_POWER = 0.5, 4.0
"""Weight of the correction of mean values that the selection suggests, and how steeply it fades (SPEC 5.4)."""


class Pseudo(NamedTuple):
    """Pseudo-tokens of a tail."""

    logits: torch.Tensor  # [Q, G, M]
    values: torch.Tensor  # [M, DV] or [Q, M, DV]
    shift: torch.Tensor | None = None  # [Q, G, DV], added to every value


def value_shift(scene: Scene, selected: torch.Tensor, value_mean: torch.Tensor, page_tokens: int) -> torch.Tensor:
    """What the selected tokens ``[Q, R]`` tell of the others' values, ``[Q, G, DV]``, beside the pages' means."""
    logits = scene.cold_logits.gather(2, selected[:, None].expand(-1, scene.query.shape[1], -1))  # [Q, G, R]
    group = group_scores(logits).clamp_min(1e-30).log()
    fade = torch.nn.functional.softplus(SHIFT_POWER * (group - group.mean(dim=1, keepdim=True)))[:, None]
    deviation = scene.cold_value[selected] - value_mean[selected // page_tokens]  # [Q, R, DV]
    return SHIFT * (logits - fade).softmax(dim=2) @ deviation


def attended(scene: Scene, selected: torch.Tensor, tail: list[Pseudo]) -> torch.Tensor:
    """Softmax over what is exact, int64 ``[Q, R]`` of the cold tokens, and the tail: ``[Q, G, DV]``."""
    logits = scene.logits.clone()
    logits[..., scene.cold].masked_fill_(~mask(selected, scene.cold_tokens)[:, None], -math.inf)
    total = torch.cat([logits, *(part.logits for part in tail)], dim=2).logsumexp(dim=2, keepdim=True)
    output = (logits - total).exp_() @ scene.value
    for part in tail:
        weights = (part.logits - total).exp_()
        output = output + weights @ part.values
        if part.shift is not None:
            output = output + weights.sum(dim=2, keepdim=True) * part.shift
    return output


def with_page_tail(
    scene: Scene, candidates: torch.Tensor, selected: torch.Tensor, estimates: torch.Tensor
) -> torch.Tensor:
    """Output with a pseudo-token a page: the mass of its unselected tokens, by exact logits of the candidates
    (int64 ``[Q, C]``) and by `estimates` ``[Q, G, N]`` of all others."""
    value_mean = scene.cold_value.unflatten(0, (-1, PAGE_TOKENS)).mean(dim=1)
    logits = torch.where(mask(candidates, scene.cold_tokens)[:, None], scene.cold_logits, estimates)
    logits.masked_fill_(mask(selected, scene.cold_tokens)[:, None], -math.inf)
    mass = logits.unflatten(2, (-1, PAGE_TOKENS)).logsumexp(dim=3)
    return attended(scene, selected, [Pseudo(mass, value_mean, value_shift(scene, selected, value_mean, PAGE_TOKENS))])


def with_span_tail(scene: Scene, candidates: torch.Tensor, selected: torch.Tensor) -> torch.Tensor:
    """Output with the tail that KIV had before: a pseudo-token a candidate page, and one a span of all others."""
    page = TODAY_PAGE_TOKENS
    (key_mean, _), (value_mean, _) = mean_spread(scene.cold_key, page), mean_spread(scene.cold_value, page)
    chosen = mask(candidates, scene.cold_tokens)
    left = chosen & ~mask(selected, scene.cold_tokens)
    near = scene.cold_logits.masked_fill(~left[:, None], -math.inf).unflatten(2, (-1, page)).logsumexp(dim=3)

    others = (~chosen).unflatten(1, (-1, page)).sum(dim=2).float()  # [Q, pages], tokens
    spare = -others.shape[1] % SPAN_PAGES

    def by_span(table: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(table, (0, 0, 0, spare)).unflatten(0, (-1, SPAN_PAGES))

    weight = torch.nn.functional.pad(others, (0, spare)).unflatten(1, (-1, SPAN_PAGES))  # [Q, spans, 32]
    tokens = weight.sum(dim=2)
    share = weight / tokens.clamp_min(1)[..., None]
    span_key, span_value = (torch.einsum("qsp,spd->qsd", share, by_span(table)) for table in (key_mean, value_mean))
    far = torch.einsum("qgd,qsd->qgs", scene.query, span_key) + tokens.log()[:, None]
    shift = value_shift(scene, selected, value_mean, page)
    return attended(scene, selected, [Pseudo(near, value_mean, shift), Pseudo(far, span_value)])


def four_bit_output(scene: Scene) -> torch.Tensor:
    """Output of full attention over cold keys of 4 bits a channel and cold values of 4 bits a token."""
    logits, value = scene.logits.clone(), scene.value.clone()
    logits[..., scene.cold] = scene.query @ four_bit_keys(scene.cold_key).T
    in_groups = scene.cold_value.reshape(-1, 32).T  # channels in groups of 32, a scale for each and token
    value[scene.cold] = by_channel(in_groups, 4, run=32).T.reshape(scene.cold_value.shape)
    return logits.softmax(dim=2) @ value


def output_error(scene: Scene, output: torch.Tensor) -> torch.Tensor:
    """‖o − o_full‖ / ‖o_full‖, ``[Q, G]``."""
    full = scene.full_output
    return (output - full).norm(dim=2) / full.norm(dim=2)
