"""The second oracle: SPEC chapters 1 to 6 in Python numbers and loops, for one sequence and one KV head.

It shares no code with the reference and uses no tensor. Numbers are Python floats (float64) and sums are exactly
rounded (`math.fsum`), so that for keys of 32 bits or fewer its scores are as good as real numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import mul
from typing import NamedTuple

from kiv_reference import KIVConfig

Vector = Sequence[float]


def total(numbers: Iterable[float]) -> float:
    """The sum, exactly rounded; with infinities or NaN, what floating point gives."""
    numbers = list(numbers)
    if all(map(math.isfinite, numbers)):
        return math.fsum(numbers)
    return sum(numbers)


def dot(a: Iterable[float], b: Iterable[float]) -> float:
    """Inner product."""
    return math.fsum(map(mul, a, b))


def log_sum_exp(logits: Iterable[float]) -> float:
    """log Σ exp; minus infinity for no logits."""
    logits = [x for x in logits if x != -math.inf]
    if not logits:
        return -math.inf
    top = max(logits)
    return top + math.log(math.fsum(math.exp(x - top) for x in logits))


def share(part: float, whole: Iterable[float]) -> float:
    """exp(part) / Σ exp(whole); 0 where there is nothing."""
    denominator = log_sum_exp(whole)
    return 0.0 if part == -math.inf or denominator == -math.inf else math.exp(part - denominator)


def best(scores: Sequence[float], n: int) -> list[int]:
    """Indices of the n best: higher score, then lower index (SPEC 1.3)."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:n]


def group_scores(by_member: Sequence[Sequence[float]], group: str) -> list[float]:
    """Group score of each item from the scores of each member (SPEC 4.3)."""
    items = range(len(by_member[0]))
    if group == "max":
        return [max(scores[i] for scores in by_member) for i in items]
    tops = [max(scores) for scores in by_member]
    return [math.fsum(math.exp(scores[i] - top) for scores, top in zip(by_member, tops, strict=True)) for i in items]


@dataclass(frozen=True)
class Page:
    """A cold page with at least one valid token (SPEC 3.1)."""

    index: int
    positions: list[int]
    mean: list[float]
    spread: list[float]
    value: list[float]
    largest: list[float]  # max |k_d|, for budgets of error

    @property
    def count(self) -> int:
        """Valid tokens."""
        return len(self.positions)


@dataclass(frozen=True)
class Modifiers:
    """Scale and soft cap (SPEC 8.1); the sink logit is handed over query by query."""

    scale: float
    softcap: float | None = None

    def cap(self, x: float) -> float:
        """cap(x) of SPEC 8.1."""
        return x if self.softcap is None else self.softcap * math.tanh(x / self.softcap)

    def logit(self, query: Vector, key: Vector) -> float:
        """Logit of a token (SPEC 5.1)."""
        return self.cap(self.scale * dot(query, key))


@dataclass(frozen=True)
class Term:
    """One summand of the softmax: a token (`positions` has one) or a pseudo-token of the tail."""

    logit: float
    value: Vector
    positions: tuple[int, ...]
    kind: str  # "token", "page" (SPEC 5.2) or "span" (SPEC 5.3)


@dataclass
class Head:
    """Tokens of one sequence and KV head, under the partition for one boundary (SPEC 2.2)."""

    config: KIVConfig
    keys: list[Vector]
    values: list[Vector]
    valid: list[bool]
    boundary: int
    _pages: dict[int, Page] = field(default_factory=dict)

    @cached_property
    def cold_pages(self) -> int:
        """N(t)."""
        c = self.config
        beyond = self.boundary - c.hot_tokens - c.sink_tokens
        return beyond // c.page_tokens if beyond > 0 else 0

    @cached_property
    def hot_start(self) -> int:
        """First hot position."""
        return self.config.sink_tokens + self.cold_pages * self.config.page_tokens

    @cached_property
    def kept(self) -> list[int]:
        """Valid positions of sinks and hot."""
        everywhere = range(len(self.keys))
        return [i for i in everywhere if self.valid[i] and (i < self.config.sink_tokens or i >= self.hot_start)]

    @cached_property
    def pages(self) -> dict[int, Page]:
        """Cold pages that have a summary, by index."""
        pages: dict[int, Page] = {}
        for j in range(self.cold_pages):
            first = self.config.sink_tokens + j * self.config.page_tokens
            positions = [i for i in range(first, first + self.config.page_tokens) if self.valid[i]]
            if positions:
                keys = [self.keys[i] for i in positions]
                mean = [total(column) / len(keys) for column in zip(*keys, strict=True)]
                spread = [max(abs(k[d] - mean[d]) for k in keys) for d in range(len(mean))]
                value = [total(column) / len(keys) for column in zip(*(self.values[i] for i in positions), strict=True)]
                largest = [max(map(abs, column)) for column in zip(*keys, strict=True)]
                pages[j] = Page(j, positions, mean, spread, value, largest)
        return pages

    def page_score(self, query: Vector, page: Page, scale: float, weight: float) -> float:
        """Page score with the given weight of the spread (SPEC 4.2)."""
        return scale * (dot(query, page.mean) + weight * dot([abs(x) for x in query], page.spread))

    def page_scores(self, members: Sequence[Vector], scale: float) -> tuple[list[int], list[list[float]]]:
        """Pages that can be ranked, and for each member their scores."""
        weight = self.config.spread_weight
        pages = list(self.pages.values())
        return [p.index for p in pages], [[self.page_score(q, p, scale, weight) for p in pages] for q in members]

    def token_scores(
        self, members: Sequence[Vector], candidates: Sequence[int], scale: float
    ) -> tuple[list[int], list[list[float]]]:
        """Valid positions of candidate pages, ascending, and for each member their scores (SPEC 4.5)."""
        positions = sorted(i for j in candidates for i in self.pages[j].positions)
        return positions, [[scale * dot(q, self.keys[i]) for i in positions] for q in members]

    def rank(self, members: Sequence[Vector], scale: float) -> list[int]:
        """All pages, best first (SPEC 4.4)."""
        indices, scores = self.page_scores(members, scale)
        if not indices:
            return []
        return [indices[i] for i in best(group_scores(scores, self.config.group), len(indices))]

    def select(self, members: Sequence[Vector], candidates: Sequence[int], scale: float) -> list[int]:
        """Selected positions, ascending (SPEC 4.6)."""
        positions, scores = self.token_scores(members, candidates, scale)
        if not positions:
            return []
        return sorted(
            positions[i] for i in best(group_scores(scores, self.config.group), self.config.retrieve_tokens or 0)
        )

    def terms(
        self, query: Vector, at: int, candidates: Sequence[int], selected: Sequence[int], tail: bool, m: Modifiers
    ) -> list[Term]:
        """All summands of one query's softmax but its sink logit (SPEC 5.1 to 5.3)."""
        chosen = set(selected)
        attended = [i for i in [*self.kept, *selected] if i <= at]
        terms = [Term(m.logit(query, self.keys[i]), self.values[i], (i,), "token") for i in attended]
        if not tail:
            return terms
        for j in candidates:
            rest = tuple(i for i in self.pages[j].positions if i not in chosen)
            if rest:
                logit = log_sum_exp(m.logit(query, self.keys[i]) for i in rest)
                terms.append(Term(logit, self.pages[j].value, rest, "page"))
        spans: dict[int, list[int]] = {}
        for j, page in self.pages.items():
            if j not in candidates:
                spans.setdefault(j // self.config.span_pages, []).extend(page.positions)
        for positions in spans.values():
            n = len(positions)
            mean = [total(column) / n for column in zip(*(self.keys[i] for i in positions), strict=True)]
            value = [total(column) / n for column in zip(*(self.values[i] for i in positions), strict=True)]
            terms.append(Term(m.logit(query, mean) + math.log(n), value, tuple(positions), "span"))
        return terms


class Answer(NamedTuple):
    """Output of one query, the weight of each term, and the log of the softmax's denominator (SPEC 5.1)."""

    output: list[float]
    weights: list[float]
    norm: float


def answer(terms: Sequence[Term], sink: float, width: int) -> Answer:
    """The softmax over the terms and the sink logit."""
    norm = log_sum_exp([*(t.logit for t in terms), sink])
    weights = [math.exp(t.logit - norm) for t in terms]
    output = [total(w * t.value[c] for w, t in zip(weights, terms, strict=True)) for c in range(width)]
    return Answer(output, weights, norm)
