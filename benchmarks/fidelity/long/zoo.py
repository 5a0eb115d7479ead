"""The indices that are compared: KIV's as it was and as it is, other sizes of both, and the rivals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from .clusters import cluster_scores
from .codes import code_estimates
from .cost import (
    KIVI_RUN,
    Cost,
    Shape,
    cluster_cost,
    code_cost,
    exact_cost,
    four_bit_cost,
    page_cost,
    plain_cost,
)
from .pages import box_scores, mean_scores, spread_out
from .quantisers import by_channel, by_groups
from .ranking import by_turns, group_scores
from .scene import Scene


@dataclass(frozen=True)
class Index:
    """One way to find what matters.

    Attributes
    ----------
    name : str
    scores : Scene -> [Q, G, N]
        Scores of the cold tokens; logits as the index estimates them, where it estimates tokens.
    cost : Shape -> Cost
    group : [Q, G, N] -> [Q, N]
        How heads that share a KV head choose together.
    """

    name: str
    scores: Callable[[Scene], torch.Tensor]
    cost: Callable[[Shape], Cost]
    group: Callable[[torch.Tensor], torch.Tensor] = group_scores


TODAY_PAGE_TOKENS, TODAY_SPREAD_WEIGHT = 64, 0.5
CHANNELS = 64


def _pages(page_tokens: int, bits: int) -> Index:
    quantise = partial(by_groups, bits=bits)
    return Index(
        f"pages of {page_tokens}, {bits} bits",
        lambda scene: spread_out(mean_scores(scene, page_tokens, quantise), page_tokens),
        partial(page_cost, page_tokens=page_tokens, bits=bits, groups=True),
    )


def _codes(channels: int) -> Index:
    return Index(
        f"codes of {channels} channels",
        partial(code_estimates, channels=channels),
        partial(code_cost, channels=channels),
    )


def _clusters(tokens_each: int, bits: int | None) -> Index:
    def quantise(table: torch.Tensor) -> torch.Tensor:
        return table if bits is None else by_groups(table, bits)

    return Index(
        f"clusters of {tokens_each} ({'as RetroInfer' if bits is None else f'{bits} bits'})",
        partial(cluster_scores, tokens_each=tokens_each, quantise=quantise),
        partial(cluster_cost, tokens_each=tokens_each, bits=bits),
    )


def four_bit_keys(keys: torch.Tensor) -> torch.Tensor:
    """Keys as a 4-bit cache holds them: a scale for a channel in 32 tokens."""
    return by_channel(keys, 4, KIVI_RUN)


TODAY = Index(
    "KIV before: pages of 64, mean + 0.5 spread",
    lambda scene: spread_out(
        mean_scores(scene, TODAY_PAGE_TOKENS, partial(by_channel, bits=8), TODAY_SPREAD_WEIGHT), TODAY_PAGE_TOKENS
    ),
    partial(page_cost, page_tokens=TODAY_PAGE_TOKENS, bits=8, tables=2),
)
NEW = _codes(CHANNELS)
UNWEIGHTED = Index(
    f"codes of {CHANNELS} channels, chosen by keys alone",
    partial(code_estimates, channels=CHANNELS, weighted=False),
    partial(code_cost, channels=CHANNELS),
)
ORIGINAL = Index(
    "the original KIV's rule",
    lambda scene: spread_out(mean_scores(scene, 128, lambda table: table), 128),
    partial(plain_cost, page_tokens=128),
    by_turns,
)
QUEST = Index(
    "Quest: boxes of 16",
    lambda scene: spread_out(box_scores(scene, 16), 16),
    partial(plain_cost, page_tokens=16, tables=2),
    by_turns,
)
RETROINFER = _clusters(16, None)
FOUR_BITS = Index(
    "4-bit cache of everything", lambda scene: scene.query @ four_bit_keys(scene.cold_key).T, four_bit_cost
)
EXACT = Index("exact keys", lambda scene: scene.cold_logits, exact_cost)

ZOO = (
    *(TODAY, _pages(16, 4), _pages(8, 4), _pages(4, 3)),
    *(_codes(32), _codes(48), NEW, _codes(96), UNWEIGHTED),
    *(ORIGINAL, QUEST, RETROINFER, _clusters(4, 3), FOUR_BITS, EXACT),
)
LARGE_ZOO = (TODAY, _pages(4, 3), _codes(32), NEW, _codes(96), UNWEIGHTED, ORIGINAL, QUEST, EXACT)
"""Without what would take hours on a million tokens."""


def zoo(width: int, *, large: bool) -> tuple[Index, ...]:
    """The indices of heads of a width D: those alone that differ there from the 64 channels."""
    chosen = LARGE_ZOO if large else ZOO
    narrow = width <= CHANNELS
    return tuple(index for index in chosen if not (narrow and index.name in (_codes(96).name, UNWEIGHTED.name)))
