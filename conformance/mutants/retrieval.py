"""Faults in scores, ranking and selection (SPEC 3 and 4)."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from kiv_reference import KIVConfig, block, mass, select, summary, tokens
from kiv_reference.view import HeadView

from .patching import mutant


def more(config: KIVConfig, **changes: int) -> KIVConfig:
    """The configuration with some numbers moved, and enough candidates for them."""
    moved = {name: getattr(config, name) + by for name, by in changes.items()}
    moved["candidate_pages"] = max(moved.get("candidate_pages", config.candidate_pages), 1)
    if moved["candidate_pages"] * config.page_tokens < moved.get("retrieve_tokens", config.retrieve_tokens):
        moved["retrieve_tokens"] = moved["candidate_pages"] * config.page_tokens
    return dataclasses.replace(config, **moved)


@mutant("R + 1 tokens selected", (block, "select_tokens"))
def _(original: Any) -> Any:
    def changed(view: Any, members: Any, candidates: Any, scale: float, config: KIVConfig) -> Any:
        roomy = dataclasses.replace(config, candidate_pages=config.candidate_pages + 1)
        return original(view, members, candidates, scale, more(roomy, retrieve_tokens=1))

    return changed


@mutant("R - 1 tokens selected", (block, "select_tokens"))
def _(original: Any) -> Any:
    return lambda *arguments: original(*arguments)[:-1]


@mutant("C + 1 candidate pages", (block, "retrieve"))
def _(original: Any) -> Any:
    return lambda q, at, view, m, config: original(q, at, view, m, more(config, candidate_pages=1))


@mutant("C - 1 candidate pages", (block, "retrieve"))
def _(original: Any) -> Any:
    return lambda q, at, view, m, config: original(q, at, view, m, more(config, candidate_pages=-1))


@mutant("smallest tokens instead of largest", (block, "select_tokens"))
def _(original: Any) -> Any:
    return lambda view, members, *rest: original(view, -members, *rest)


@mutant("smallest pages instead of largest", (select, "page_scores"))
def _(original: Any) -> Any:
    return lambda *arguments: -original(*arguments)


@mutant("ties to the higher index", (select, "best"))
def _(original: Any) -> Any:
    def changed(scores: torch.Tensor, n: int) -> torch.Tensor:
        order = torch.sort(scores.flip(0), descending=True, stable=True).indices
        return (scores.numel() - 1 - order)[:n]

    return changed


@mutant("group maximum instead of the sum of exponentials", (select, "group_scores"))
def _(original: Any) -> Any:
    return lambda scores, group: original(scores, "max")


@mutant("sum of exponentials instead of the group maximum", (select, "group_scores"))
def _(original: Any) -> Any:
    return lambda scores, group: original(scores, "exp_sum")


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


@mutant("scale twice in the page score", (select, "page_scores"), look="2.3")
def _(original: Any) -> Any:
    return lambda members, mean, spread, scale, weight: original(members, mean, spread, scale * scale, weight)


@mutant("no scale in the token score", (block, "select_tokens"), look="4.3")
def _(original: Any) -> Any:
    return lambda view, members, candidates, scale, config: original(view, members, candidates, 1.0, config)


@mutant("spread weight always 1", (select, "page_scores"))
def _(original: Any) -> Any:
    return lambda members, mean, spread, scale, weight: original(members, mean, spread, scale, 1.0)


@mutant("spread weight always 0", (select, "page_scores"))
def _(original: Any) -> Any:
    return lambda members, mean, spread, scale, weight: original(members, mean, spread, scale, 0.0)


@mutant("spread times q instead of |q|", (select, "page_scores"))
def _(original: Any) -> Any:
    return lambda members, mean, spread, scale, weight: scale * (members @ mean.T + weight * (members @ spread.T))


@mutant("spread over |k| instead of |k - mean|", (tokens, "summarise"))
def _(original: Any) -> Any:
    def changed(key: torch.Tensor, value: torch.Tensor, valid: torch.Tensor) -> Any:
        page = original(key, value, valid)
        return page._replace(spread=key[:, valid].to(page.mean.dtype).abs().amax(dim=1)) if bool(valid.any()) else page

    return changed


@mutant("spread is a mean deviation", (tokens, "summarise"))
def _(original: Any) -> Any:
    def changed(key: torch.Tensor, value: torch.Tensor, valid: torch.Tensor) -> Any:
        page = original(key, value, valid)
        return page._replace(spread=(key[:, valid].to(page.mean.dtype) - page.mean[:, None]).abs().mean(dim=1))

    return changed


@mutant("padding summarised", (tokens, "summarise"))
def _(original: Any) -> Any:
    def changed(key: torch.Tensor, value: torch.Tensor, valid: torch.Tensor) -> Any:
        return original(key.nan_to_num(), value.nan_to_num(), torch.ones_like(valid))

    return changed


@mutant("padding retrieved", (HeadView, "page_positions"))
def _(original: Any) -> Any:
    return lambda self, page: torch.arange(*self.partition.page(page))


@mutant("scores in float16", (select, "page_scores"), look="4.2")
def _(original: Any) -> Any:
    return lambda *arguments: original(*arguments).to(torch.float16).to(arguments[0].dtype)


@mutant("keys rounded to float16 before scoring", (HeadView, "keys"))
def _(original: Any) -> Any:
    return lambda self, positions: original(self, positions).to(torch.float16).to(summary.compute_dtype(self.key.dtype))


@mutant("softcap in ranking", (block, "retrieve"), look="4.6")
def _(original: Any) -> Any:
    def changed(query: Any, at: Any, view: Any, m: Any, config: KIVConfig) -> Any:
        group_scores = select.group_scores
        select.group_scores = lambda scores, group: group_scores(m.cap(scores), group)
        try:
            return original(query, at, view, m, config)
        finally:
            select.group_scores = group_scores

    return changed


@mutant("whole pages for the first member only", (block, "missed_bounds"))
def _(original: Any) -> Any:
    return lambda *arguments: original(*arguments)[:1, :1] if arguments[6] else original(*arguments)


@mutant("one whole page too many", (block, "missed_bounds"))
def _(original: Any) -> Any:
    def changed(*arguments: Any) -> torch.Tensor:
        bounds = original(*arguments)
        return torch.cat([torch.ones_like(bounds[..., :1]), bounds[..., :-1]], dim=2) if arguments[6] else bounds

    return changed


@mutant("streams after C pages instead of 4 C", (block, "STREAM_FACTOR"))
def _(original: Any) -> Any:
    return 1


@mutant("never streams before 40 C pages", (block, "STREAM_FACTOR"), look="6.3")
def _(original: Any) -> Any:
    return 40


@mutant("missed bound from half the spread", (mass, "page_scores"))
def _(original: Any) -> Any:
    return lambda q, mean, spread, scale, weight: original(q, mean, spread, scale, weight / 2)


@mutant("missed bound without the count", (mass, "upper_logits"))
def _(original: Any) -> Any:
    def changed(query: Any, view: HeadView, pages: torch.Tensor, m: Any) -> torch.Tensor:
        return original(query, view, pages, m) - torch.log(view.count[pages].double())

    return changed


@mutant("missed bound twice as wide as it need be", (mass, "page_scores"))
def _(original: Any) -> Any:
    return lambda q, mean, spread, scale, weight: original(q, mean, spread, scale, weight * 2)
