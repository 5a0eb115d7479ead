"""The second oracle: SPEC chapters 1 to 5 in Python numbers and loops, for one sequence and one KV head.

It shares no code with the reference and uses no tensor. Numbers are Python floats (float64), so that for keys of 32
bits or fewer its scores are as good as real numbers; only codes and their weights are computed as SPEC 3.3 and 4.2
have it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .oracle_estimate import Estimates
from .oracle_index import Page, Samples, page_of
from .oracle_numbers import Vector, best, dot, group_scores, log_sum_exp, total

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from kiv_reference import KIVConfig


@dataclass(frozen=True)
class Modifiers:
    """Scale and soft cap (SPEC 8.1); the sink logit is handed over query by query."""

    scale: float
    softcap: float | None = None

    def cap(self, x: float) -> float:
        """Return cap(x) of SPEC 8.1."""
        return x if self.softcap is None else self.softcap * math.tanh(x / self.softcap)


@dataclass(frozen=True)
class Term:
    """One summand of the softmax: a token (`positions` has one) or a page's pseudo-token of the tail (SPEC 5.2)."""

    logit: float
    value: Vector
    positions: tuple[int, ...]
    page: Page | None = None
    estimated: frozenset[int] = frozenset()  # those of `positions` whose logits are from the index


class Products(dict[int, float]):
    """q·k of one query for each position that was asked for."""

    def __init__(self, query: Vector, rows: Mapping[int, Vector] | Sequence[Vector]) -> None:
        super().__init__()
        self.query, self.rows = query, rows

    def __missing__(self, position: int) -> float:
        self[position] = dot(self.query, self.rows[position])
        return self[position]


@dataclass
class Head:
    """Tokens of one sequence and KV head, under the partition for one boundary (SPEC 2.2).

    `dtype` is that of SPEC 1.2. `known` keeps pages for other boundaries: the tokens and samples of a cold page never
    change, as long as nothing is cropped.
    """

    config: KIVConfig
    keys: list[Vector]
    values: list[Vector]
    valid: list[bool]
    boundary: int
    samples: Samples = field(default_factory=dict)
    dtype: type[np.floating[Any]] = np.float32
    known: dict[int, Page | None] = field(default_factory=dict)
    _products: dict[tuple[float, ...], Products] = field(default_factory=dict)
    _estimates: dict[tuple[float, ...], tuple[list[Estimates], dict[int, float]]] = field(default_factory=dict)

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
        """Cold pages that have an index, by number."""
        for j in range(self.cold_pages):
            if j not in self.known:
                self.known[j] = page_of(
                    self.config, j, self.keys, self.values, self.valid, self.samples, self.dtype
                )  # fmt: skip
        return {j: page for j in range(self.cold_pages) if (page := self.known[j]) is not None}

    @cached_property
    def largest(self) -> list[float]:
        """Largest |k_d| of the valid tokens, which are at least one."""
        rows = (row for row, valid in zip(self.keys, self.valid, strict=True) if valid)
        return [max(map(abs, column)) for column in zip(*rows, strict=True)]

    @cached_property
    def page_at(self) -> dict[int, Page]:
        """The page of each valid cold position; the positions ascend."""
        return {i: page for page in self.pages.values() for i in page.positions}

    def products(self, query: Vector) -> Products:
        """Return q·k by position."""
        name = tuple(query)
        if name not in self._products:
            self._products[name] = Products(query, self.keys)
        return self._products[name]

    def estimates(self, query: Vector, scale: float) -> tuple[list[Estimates], dict[int, float]]:
        """Return the estimates of each page, and by cold position, ascending (SPEC 4.2)."""
        name = (scale, *query)
        if name not in self._estimates:
            pages = [Estimates(query, page, scale, self.dtype) for page in self.pages.values()]
            scores = (zip(made.page.positions, made.scores(), strict=True) for made in pages)
            self._estimates[name] = pages, dict(chain.from_iterable(scores))
        return self._estimates[name]

    def logits(self, query: Vector, positions: Iterable[int], m: Modifiers) -> list[float]:
        """Return the logits of tokens (SPEC 5.1)."""
        row = self.products(query)
        return [m.cap(m.scale * row[i]) for i in positions]

    def index_scores(self, members: Sequence[Vector], scale: float) -> tuple[list[int], list[list[float]]]:
        """Return valid cold positions, ascending, and for each member their estimates (SPEC 4.2)."""
        positions = list(self.page_at)
        return positions, [list(self.estimates(query, scale)[1].values()) for query in members]

    def token_scores(
        self, members: Sequence[Vector], candidates: Sequence[int], scale: float
    ) -> tuple[list[int], list[list[float]]]:
        """Return candidates, ascending, and for each member their scores (SPEC 4.5)."""
        positions = sorted(candidates)
        return positions, [[scale * row[i] for i in positions] for row in map(self.products, members)]

    def rank(self, members: Sequence[Vector], scale: float) -> list[int]:
        """Return all valid cold positions, best first (SPEC 4.4)."""
        positions, scores = self.index_scores(members, scale)
        if not positions:
            return []
        return [positions[i] for i in best(group_scores(scores, self.config.group), len(positions))]

    def select(self, members: Sequence[Vector], candidates: Sequence[int], scale: float) -> list[int]:
        """Return selected positions, ascending (SPEC 4.6)."""
        positions, scores = self.token_scores(members, candidates, scale)
        if not positions:
            return []
        chosen = best(group_scores(scores, self.config.group), self.config.retrieve_tokens or 0)
        return sorted(positions[i] for i in chosen)

    def terms(
        self, query: Vector, at: int, candidates: Sequence[int], selected: Sequence[int], tail: bool, m: Modifiers
    ) -> list[Term]:
        """Return all summands of one query's softmax but its sink logit (SPEC 5.1, 5.2); nothing is shifted yet."""
        attended = [i for i in [*self.kept, *selected] if i <= at]
        logits = self.logits(query, attended, m)
        terms = [Term(logit, self.values[i], (i,)) for i, logit in zip(attended, logits, strict=True)]
        if not tail:
            return terms
        chosen, known, row = set(selected), set(candidates), self.products(query)
        _, estimates = self.estimates(query, m.scale)
        for page in self.pages.values():
            rest = tuple(i for i in page.positions if i not in chosen)
            if rest:
                logits = [m.cap(m.scale * row[i] if i in known else estimates[i]) for i in rest]
                estimated = frozenset(rest) - known
                terms.append(Term(log_sum_exp(logits), page.value, rest, page, estimated))
        return terms


class Answer(NamedTuple):
    """Output of one query, the weight of each term, and the log of the softmax's denominator (SPEC 5.1)."""

    output: list[float]
    weights: list[float]
    norm: float


def answer(terms: Sequence[Term], sink: float, width: int) -> Answer:
    """Return the softmax over the terms and the sink logit."""
    norm = log_sum_exp([*(t.logit for t in terms), sink])
    weights = [math.exp(t.logit - norm) for t in terms]
    output = [total(w * t.value[c] for w, t in zip(weights, terms, strict=True)) for c in range(width)]
    return Answer(output, weights, norm)
