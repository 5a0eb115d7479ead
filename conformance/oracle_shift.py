"""The second oracle's shift of mean values (SPEC 5.4), for one block of one sequence and KV head."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from .oracle_numbers import Vector, log_sum_exp, total

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .oracle import Head, Modifiers, Term
    from .oracle_index import Page


def log_sigmoid(x: float) -> float:
    """Return log(1 / (1 + e^-x))."""
    return min(x, 0.0) - math.log1p(math.exp(-abs(x)))


@dataclass
class Shift:
    """What the selection tells of the values that were not selected.

    Attributes
    ----------
    members : the block's valid queries
    selected : positions, ascending
    """

    head: Head
    members: Sequence[Vector]
    selected: Sequence[int]
    modifiers: Modifiers

    @property
    def pages(self) -> list[Page]:
        """The pages that have a selected token."""
        return [page for page in self.head.pages.values() if not set(self.selected).isdisjoint(page.positions)]

    @cached_property
    def groups(self) -> list[float]:
        """log(S_i / S̄) of each selected token."""
        _, rows = self.head.token_scores(self.members, self.selected, self.modifiers.scale)
        tops = [max(row) for row in rows]
        logs = [log_sum_exp(row[n] - top for row, top in zip(rows, tops, strict=True)) for n in range(len(rows[0]))]
        middle = math.fsum(logs) / len(logs)
        return [x - middle for x in logs]

    @cached_property
    def deviations(self) -> list[list[float]]:
        """u - ν of each selected token."""
        means = [self.head.page_at[i].value for i in self.selected]
        values = [self.head.values[i] for i in self.selected]
        return [[u - v for u, v in zip(*pair, strict=True)] for pair in zip(values, means, strict=True)]

    def weights(self, query: Vector) -> list[float]:
        """Return w_i of a query."""
        logits = self.head.logits(query, self.selected, self.modifiers)
        logs = [x + log_sigmoid(-4 * group) for x, group in zip(logits, self.groups, strict=True)]
        norm = log_sum_exp(logs)
        return [math.exp(x - norm) for x in logs]

    def vector(self, query: Vector) -> list[float]:
        """Return what one query adds to mean values."""
        weights = self.weights(query)
        columns = zip(*self.deviations, strict=True)
        return [0.5 * total(w * x for w, x in zip(weights, column, strict=True)) for column in columns]

    def applied(self, query: Vector, terms: Sequence[Term]) -> list[Term]:
        """Return the terms, the values of all pseudo-tokens shifted."""
        if not self.selected or all(term.page is None for term in terms):
            return list(terms)
        moved = self.vector(query)
        return [
            t if t.page is None else replace(t, value=[a + b for a, b in zip(t.value, moved, strict=True)])
            for t in terms
        ]
