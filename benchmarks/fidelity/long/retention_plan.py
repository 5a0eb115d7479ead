"""What a full run asks whole models in the long regime: documents, budgets, and what may be lost."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from .documents import LongDocument, Text

SHARES = (0.25, 0.06, 0.016, 0.008)
"""Candidates as a share of the cold tokens."""

LEAST_ANSWERED = 40
"""Questions a model that full attention is to answer: a series goes on until it has so many."""


@dataclass(frozen=True)
class Series:
    """Documents alike, with other facts in other stretches of the text: so many at `least`, and at `most`."""

    model: str
    text: Text
    tokens: int
    least: int
    most: int

    def document(self, number: int) -> LongDocument:
        """One of them."""
        return LongDocument(self.model, self.text, self.tokens, number)

    def wanted(self, number: int, answers: int) -> bool:
        """Whether the document of this number is asked when full attention answered so many of the earlier ones'."""
        return number < self.least or (number < self.most and answers < LEAST_ANSWERED)


SERIES = (
    Series("smollm2", "kjv", 7600, 3, 8),
    Series("gemma", "kjv", 31000, 3, 6),
    Series("qwen", "code", 26000, 2, 5),
)

LOST = {0.25: 0.01, 0.06: 0.01, 0.016: 0.03, 0.008: 0.1}
"""Share of candidates -> share of the needles that may be lost."""

HOPS_LOST = 0.05
"""Share of two hops, and of several needles, that may be lost at 6 %."""


def planned(options: argparse.Namespace) -> tuple[tuple[Series, ...], tuple[float, ...]]:
    """The series that a run asks, and the shares: a small document and one share, or all of the models asked for."""
    if options.quick:
        return (Series("smollm2", "kjv", 1800, 1, 1),), SHARES[:1]
    chosen = [series for series in SERIES if series.model in options.models]
    return tuple(s for s in chosen if s.tokens <= (options.longest or s.tokens)), SHARES
