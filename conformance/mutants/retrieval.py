"""Faults in scores, ranking, selection and the limit of what is missed (SPEC 4 and 6)."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from kiv_reference import KIVConfig, block, index, mass, partition, select, store
from kiv_reference.view import HeadView

from .patching import mutant, reworded


def more(config: KIVConfig, **changes: int) -> KIVConfig:
    """Return the configuration with some numbers moved, and at least one candidate for each selected token."""
    moved = {name: getattr(config, name) + by for name, by in changes.items()}
    moved["candidate_tokens"] = max(moved.get("candidate_tokens", config.candidate_tokens), 1)
    moved["retrieve_tokens"] = min(moved.get("retrieve_tokens", config.retrieve_tokens), moved["candidate_tokens"])
    return dataclasses.replace(config, **moved)


@mutant("R + 1 tokens selected", (select, "select_tokens"))
def _(original: Any) -> Any:
    def changed(view: Any, members: Any, candidates: Any, scale: float, config: KIVConfig) -> Any:
        return original(view, members, candidates, scale, more(config, candidate_tokens=1, retrieve_tokens=1))

    return changed


@mutant("R - 1 tokens selected", (select, "select_tokens"))
def _(original: Any) -> Any:
    return lambda *arguments: original(*arguments)[:-1]


@mutant("C + 1 candidates", (block, "retrieve"))
def _(original: Any) -> Any:
    return lambda q, at, view, m, config: original(q, at, view, m, more(config, candidate_tokens=1))


@mutant("C - 1 candidates", (block, "retrieve"))
def _(original: Any) -> Any:
    return lambda q, at, view, m, config: original(q, at, view, m, more(config, candidate_tokens=-1))


@mutant("smallest tokens instead of largest", (select, "select_tokens"))
def _(original: Any) -> Any:
    return lambda view, members, *rest: original(view, -members, *rest)


@mutant("smallest estimates instead of largest", (block, "rank_cold"))
def _(original: Any) -> Any:
    return lambda view, members, *rest: original(view, -members, *rest)


@mutant("selection from all cold tokens", (select, "select_tokens"))
def _(original: Any) -> Any:
    return lambda view, members, candidates, *rest: original(view, members, view.cold_positions(), *rest)


@mutant("selection by estimates", (select, "select_tokens"))
def _(original: Any) -> Any:
    def changed(view: Any, members: Any, candidates: Any, scale: float, config: KIVConfig) -> Any:
        ranked = select.rank_cold(view, members, scale, config)
        return ranked[torch.isin(ranked, candidates)][: config.retrieve_tokens].sort().values

    return changed


RANK, TOKENS, BEST = (block, "rank_cold"), (select, "select_tokens"), (select, "best")
reworded(
    "candidates by exact scores", RANK, "view.estimates(members, positions, scale)", "members @ view.keys(positions).T"
)
reworded("candidates by the maximum of the group", RANK, "config.group", '"max"')
reworded("candidates by the sum of exponentials", RANK, "config.group", '"exp_sum"')
reworded("selection by the maximum of the group", TOKENS, "config.group", '"max"')
reworded("selection by the sum of exponentials", TOKENS, "config.group", '"exp_sum"')
reworded("scale twice in the estimate", RANK, "estimates = ", "estimates = scale * ", look="4.3")
reworded("no scale in the token score", TOKENS, "scores = scale *", "scores =", look="4.3")


@mutant("ties to the higher index", (select, "best"))
def _(original: Any) -> Any:
    def changed(scores: torch.Tensor, n: int) -> torch.Tensor:
        order = torch.sort(scores.flip(0), descending=True, stable=True).indices
        return (scores.numel() - 1 - order)[:n]

    return changed


@mutant("ties among candidates by the order of their estimates", (select, "select_tokens"))
def _(original: Any) -> Any:
    def changed(view: Any, members: Any, candidates: Any, scale: float, config: KIVConfig) -> Any:
        ranked = select.rank_cold(view, members, scale, config)
        return original(view, members, ranked[torch.isin(ranked, candidates)], scale, config)

    return changed


@mutant("exponentials below a maximum over all members", (select, "group_scores"))
def _(original: Any) -> Any:
    def changed(scores: torch.Tensor, group: str) -> torch.Tensor:
        return original(scores, group) if group == "max" else torch.exp(scores - scores.max()).sum(dim=0)

    return changed


@mutant("sum of scores instead of exponentials", (select, "group_scores"))
def _(original: Any) -> Any:
    return lambda scores, group: original(scores, group) if group == "max" else scores.sum(dim=0)


@mutant("only the first member of a block ranks", (select, "group_scores"))
def _(original: Any) -> Any:
    return lambda scores, group: original(scores[:1], group)


@mutant("padding retrieved", (HeadView, "cold_positions"))
def _(original: Any) -> Any:
    return lambda self: torch.arange(self.partition.cold_start, self.partition.hot_start)


@mutant("estimates in float16", (HeadView, "estimates"))
def _(original: Any) -> Any:
    return lambda self, *rest: original(self, *rest).to(torch.float16).to(self.index.mean.dtype)


@mutant("keys rounded to float16 before scoring", (HeadView, "keys"))
def _(original: Any) -> Any:
    return lambda self, positions: original(self, positions).to(torch.float16).to(index.compute_dtype(self.key.dtype))


@mutant("softcap in ranking", (block, "retrieve"), look="8.1")
def _(original: Any) -> Any:
    def changed(query: Any, at: Any, view: Any, m: Any, config: KIVConfig) -> Any:
        group_scores = select.group_scores
        select.group_scores = lambda scores, group: group_scores(m.cap(scores), group)
        try:
            return original(query, at, view, m, config)
        finally:
            select.group_scores = group_scores

    return changed


CHOSEN, BLOCKS = (partition, "_chosen"), (store, "query_blocks")
reworded("C cold positions are a choice", CHOSEN, "cold <= config", "cold < config", look="4.1")
reworded(
    "one more cold position is no choice",
    CHOSEN,
    "<= config.candidate_tokens",
    "<= config.candidate_tokens + 1",
    look="4.1",
)
reworded("cold pages counted for cold positions", CHOSEN, " * config.page_tokens", "", look="4.1")
reworded("never exact, however few are cold", CHOSEN, "cold <= config.candidate_tokens", "False", look="4.1")
reworded(
    "the first block of a call decides for all", BLOCKS, "config.prefill, start)", "config.prefill, first)", look="4.1"
)
reworded("windows are exact where few are cold", CHOSEN, 'mode == "retrieve"', 'mode != "exact"', look="7.3")

RETRIEVE = (block, "retrieve")
reworded("the limit holds for the first member alone", RETRIEVE, "(bound <=", "(bound[:1, :1] <=", look="6.3")
WHOLE = "Retrieval(whole, whole)"
reworded("tokens taken whole are no candidates", RETRIEVE, WHOLE, "Retrieval(chosen.candidates, whole)", look="6.3")
reworded("candidates beyond C are not selected", RETRIEVE, WHOLE, "Retrieval(whole, chosen.selected)", look="6.3")
reworded("what is taken whole counts as widened", RETRIEVE, WHOLE, "Retrieval(whole, whole, False, True)", look="6.3")
reworded("C are taken where R are enough", RETRIEVE, "(tried, *", "(", look="6.3")


@mutant("streams after 2 C instead of 4 C", (block, "WHOLE"), look="6.3")
def _(original: Any) -> Any:
    return original[:2]


@mutant("never streams before 8 C", (block, "WHOLE"), look="6.3")
def _(original: Any) -> Any:
    return (*original, 8)


@mutant("2 C is left out", (block, "WHOLE"), look="6.3")
def _(original: Any) -> Any:
    return (1, 4)


@mutant("C are left out", (block, "WHOLE"), look="6.3")
def _(original: Any) -> Any:
    return original[1:]


SLACK, UPPER, MISSED = (mass, "page_slack"), (mass, "upper_logits"), (block, "missed_bound")
SPREAD = "return spread + less"
reworded("missed bound without the error of codes", SLACK, SPREAD, "return 0 * spread + less", look="6.2")
reworded("missed bound without the rounding of weights", SLACK, SPREAD, "return spread", look="6.2")
reworded("missed bound from signed queries", SLACK, "query.abs()", "query", look="6.2")
reworded("missed bound twice as wide as it need be", SLACK, SPREAD, "return 2 * spread + less", look="6.2")
reworded("room for rounding of a thousandth", SLACK, "torch.finfo(query.dtype).eps", "1e-3", look="6.2")
reworded("missed bound without the soft cap", UPPER, "modifiers.cap(", "(", look="8.1")
reworded("missed bound without unselected candidates", MISSED, "[exact_logits(left, 1), upper", "[upper")
ROUNDED = "side * rounding(wide, keys, modifiers.scale)"
reworded("missed bound without the rounding of what was read", MISSED, ROUNDED, "0", look="6.2")
reworded(
    "missed bound as if candidates were unread", MISSED, "torch.isin(cold, candidates)", "torch.isin(cold, selected)"
)
