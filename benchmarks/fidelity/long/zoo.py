"""The indices that are compared: KIV's in three sizes, with and without doubling, and rules that rank pages."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from .codes import code_bytes, code_estimates
from .ranking import by_turns, group_scores

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from .scene import Scene


@dataclass(frozen=True)
class Index:
    """One way to find what matters.

    Attributes
    ----------
    name : str
    scores : Scene -> [Q, G, N]
        Scores of the cold tokens; logits as the index estimates them, where it estimates tokens.
    index_bytes : D -> float
        Bytes for each cold token of a KV head, all tables included.
    group : [Q, G, N] -> [Q, N]
        How heads that share a KV head choose together.
    estimates : bool
        Whether scores are logits, from which a tail can be weighed.
    doubles : bool
        Whether candidates are doubled where SPEC 4.9 says so.
    """

    name: str
    scores: Callable[[Scene], torch.Tensor]
    index_bytes: Callable[[int], float]
    group: Callable[[torch.Tensor], torch.Tensor] = group_scores
    estimates: bool = True
    doubles: bool = False


CHANNELS = 64


def _codes(channels: int) -> Index:
    return Index(
        f"codes of {channels} channels",
        partial(code_estimates, channels=channels),
        partial(code_bytes, channels=channels),
    )


def page_bytes(width: int, page_tokens: int, vectors: int) -> float:
    """Count bytes for each token of `vectors` bfloat16 vectors a page."""
    return 2 * width * vectors / page_tokens


def mean_scores(scene: Scene, page_tokens: int) -> torch.Tensor:
    """Score tokens by their page's mean key, as the original KIV's rule does: ``[Q, G, N]``."""
    mean = scene.cold_key.unflatten(0, (-1, page_tokens)).mean(dim=1)
    return (scene.query @ mean.T).repeat_interleave(page_tokens, dim=-1)


def box_scores(scene: Scene, page_tokens: int) -> torch.Tensor:
    """Score tokens by the most that a key in the box around their page's keys could, as Quest does: ``[Q, G, N]``."""
    paged = scene.cold_key.unflatten(0, (-1, page_tokens))
    high, low = paged.amax(dim=1), paged.amin(dim=1)
    scores = scene.query.clamp(min=0) @ high.T + scene.query.clamp(max=0) @ low.T
    return scores.repeat_interleave(page_tokens, dim=-1)


NEW = _codes(CHANNELS)
DOUBLED = replace(NEW, name=f"{NEW.name}, candidates doubled where SPEC 4.9 says so", doubles=True)
ORIGINAL = Index(
    "the original KIV's rule",
    partial(mean_scores, page_tokens=128),
    partial(page_bytes, page_tokens=128, vectors=1),
    by_turns,
    estimates=False,
)
QUEST = Index(
    "Quest: boxes of 16",
    partial(box_scores, page_tokens=16),
    partial(page_bytes, page_tokens=16, vectors=2),
    by_turns,
    estimates=False,
)
EXACT = Index("exact keys", lambda scene: scene.cold_logits, partial(page_bytes, page_tokens=1, vectors=1))

ZOO = (_codes(32), _codes(48), NEW, DOUBLED, ORIGINAL, QUEST, EXACT)
