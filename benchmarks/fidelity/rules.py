"""Retrieval rules: KIV with any knobs, the original KIV, Quest, windows and oracles, as one small algebra."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .attention import Answer, attend
from .grouping import Group, best_mask, group_scores
from .packed_keys import packed_logits
from .scene import Scene, Setting
from .scores import PageScore
from .tails import Chosen, Tail, tail_tokens


@dataclass(frozen=True)
class Rule:
    """How to choose cold tokens.

    Attributes
    ----------
    name : str
        Row in a table.
    page_tokens : int
        P; also the pages of an oracle's tail.
    score : PageScore, or None
        None looks at every token: an oracle.
    candidate_factor : float
        Of the setting's C * P.
    retrieve_tokens : int, or None
        R; None takes the setting's. 0 retrieves nothing.
    whole_pages : bool
        Attend to the candidate pages whole, as many as hold R tokens; no second ranking.
    page_group, token_group : Group
        Who chooses pages, and tokens, together.
    tail : Tail, or None
    sinks : bool
        Whether the first tokens are kept.
    reads_candidate_values : bool
        Fetch K and V of every candidate, as the original KIV does, and choose afterwards.
    key_bits : int, or None
        Rank candidates, and weigh the tail, by keys packed to so many bits; the selected keys are read exactly.
    value_weight : float
        Rank tokens by logit + this times log ‖v − mean value of the page‖: what the tail would get wrong about them. A
        number a token, kept beside its key.
    own_costs : bool
        Count what the rule was published with, in bfloat16, and not what kiv-fast would hold for it.
    least_share : float, or None
        Select no token whose softmax share, of sinks, hot and candidates and summed over the group, is below this: R
        is then only the most.
    """

    name: str
    page_tokens: int = 32
    score: PageScore | None = None
    candidate_factor: float = 1.0
    retrieve_tokens: int | None = None
    whole_pages: bool = False
    page_group: Group = "exp_sum"
    token_group: Group = "exp_sum"
    tail: Tail | None = None
    sinks: bool = True
    reads_candidate_values: bool = False
    key_bits: int | None = None
    value_weight: float = 0.0
    own_costs: bool = False
    least_share: float | None = None

    def budget(self, setting: Setting) -> tuple[int, int]:
        """R, and C * P, in tokens."""
        retrieve = setting.retrieve_tokens if self.retrieve_tokens is None else self.retrieve_tokens
        candidates = int(setting.candidate_tokens * self.candidate_factor)
        return retrieve, retrieve if self.whole_pages else candidates

    def answer(self, scene: Scene, setting: Setting) -> Answer:
        """Apply the rule to a scene."""
        retrieve, candidate_tokens = self.budget(setting)
        candidates, following, allowed = self._candidates(scene, candidate_tokens)
        chosen = self._select(scene, candidates, following, allowed, retrieve)
        tail = [] if self.tail is None else tail_tokens(scene, chosen, self.page_tokens, self.tail)
        output = attend(scene, chosen.selected, tail, self.sinks)
        keys = allowed.any(dim=2).sum(dim=2) if retrieve else torch.zeros(chosen.selected.shape[:2])
        values = keys if self.reads_candidate_values else chosen.selected.any(dim=2).sum(dim=2)
        return Answer(output, chosen.selected, keys.float(), values.float())

    def _candidates(self, scene: Scene, candidate_tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Candidate pages, those that follow, bool ``[H, Q, G', N]``, and candidate tokens, ``[H, Q, G', T']``."""
        if self.score is None:
            heads, queries = scene.query.shape[:2]
            allowed = torch.ones(heads, queries, 1, scene.cold_tokens, dtype=torch.bool)
            pages = allowed[..., :: self.page_tokens]
            return pages, torch.zeros_like(pages), allowed
        scores = group_scores(self.score.score(scene, self.page_tokens), self.page_group)
        pages = best_mask(scores, candidate_tokens // self.page_tokens)
        following = torch.zeros_like(pages)
        if self.tail is not None and self.tail.next_tokens:
            following = best_mask(scores, (candidate_tokens + self.tail.next_tokens) // self.page_tokens) & ~pages
        if self.page_group == "head" and not (self.whole_pages or self.token_group == "head"):
            pages = pages.any(dim=2, keepdim=True)  # the union of what the heads of the group chose
        if self.token_group == "layer_max":
            pages = pages.any(dim=0, keepdim=True).expand_as(pages)
        return pages, following, pages.repeat_interleave(self.page_tokens, dim=3)

    def _select(
        self, scene: Scene, candidates: torch.Tensor, following: torch.Tensor, allowed: torch.Tensor, retrieve: int
    ) -> Chosen:
        logits = scene.cold_logits if self.key_bits is None else packed_logits(scene, self.page_tokens, self.key_bits)
        if self.whole_pages:
            return Chosen(candidates, following, allowed, logits)
        ranked = logits
        if self.value_weight:
            ranked = ranked + self.value_weight * value_importance(scene, self.page_tokens)
        ranked = ranked.masked_fill(~allowed, -math.inf)
        scores = group_scores(ranked, self.token_group)
        if self.least_share is not None:
            always = torch.cat([scene.logits[..., : scene.cold_start], scene.logits[..., scene.cold_stop :]], dim=3)
            total = torch.logaddexp(always.logsumexp(dim=3), ranked.logsumexp(dim=3))
            share = torch.exp(ranked - total[..., None]).sum(dim=2, keepdim=True)
            allowed = allowed & (share >= self.least_share)
            scores = scores.masked_fill(~allowed, -math.inf)
        return Chosen(candidates, following, best_mask(scores, retrieve) & allowed, logits)


def value_importance(scene: Scene, page_tokens: int) -> torch.Tensor:
    """log ‖v − mean value of its page‖ of every cold token, ``[H, 1, 1, T']``."""
    values = scene.paged_values(page_tokens)
    distance = (values - values.mean(dim=2, keepdim=True)).norm(dim=3)  # [H, N, P]
    return distance.flatten(1, 2).clamp(min=1e-6).log()[:, None, None]
