"""What a full run asks of the long regime: documents and numbers of candidates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .capture import capture_path
from .documents import LongDocument, Text
from .scene import cold_tokens

if TYPE_CHECKING:
    import argparse

HOT_TOKENS = {"gemma": 2048, "smollm2": 1024, "qwen": 1024}

SHARES = (0.5, 0.25, 0.06, 0.016, 0.008, 0.002)
"""Candidates as a share of the cold tokens: what makes finding hard, whatever the length."""

LEAST_CANDIDATES = 8

LARGE_CANDIDATES = (16384, 8192, 4096, 2048)
"""Candidates where the document is so long that it is read by retrieval."""


@dataclass(frozen=True)
class Plan:
    """A document; one in `every` of its last positions is asked, and one in `layers` layers measured."""

    document: LongDocument
    every: int = 8
    layers: int = 1

    @property
    def key(self) -> tuple[str, ...]:
        """Of its record: the document, and all that this module decides about how it is measured."""
        candidates = SHARES if self.document.exact else LARGE_CANDIDATES
        hot = HOT_TOKENS[self.document.model]
        return (self.document.name, f"{hot} hot", f"1/{self.every}", f"1/{self.layers}", f"{candidates}")

    @property
    def text(self) -> slice:
        """Those of the last positions that are asked."""
        return slice(self.every // 2 - 1, None, self.every)

    def counts(self, tokens: int) -> list[int]:
        """Return the candidates of a document that came out at `tokens` tokens."""
        if not self.document.exact:
            return list(LARGE_CANDIDATES)
        cold = cold_tokens(tokens, HOT_TOKENS[self.document.model])
        return list(dict.fromkeys(max(LEAST_CANDIDATES, round(share * cold)) for share in SHARES))


DOCUMENTS: tuple[tuple[str, Text, int | None], ...] = (
    ("smollm2", "kjv", 8000),
    ("smollm2", "code", 8000),
    ("gemma", "kjv", 32000),
    ("gemma", "code", 32000),
    ("gemma", "kjv", 100000),
    ("qwen", "code", 26000),
    ("qwen", "kjv", 26000),
    ("gemma", "kjv", 128000),
    ("gemma", "kjv", None),
)


def plans(options: argparse.Namespace) -> list[Plan]:
    """Return what a run measures: all documents of the models that were asked for, or a small one."""
    if options.quick:
        return [Plan(LongDocument("smollm2", "kjv", 2000), 32, 15)]
    made = [Plan(LongDocument(*place)) for place in DOCUMENTS]
    longest = options.longest
    if options.captured:
        made = [plan for plan in made if capture_path(plan.document).exists()]
    return [
        plan if plan.document.exact else Plan(plan.document, 16)
        for plan in made
        if plan.document.model in options.models and (longest is None or (plan.document.tokens or 2**20) <= longest)
    ]
