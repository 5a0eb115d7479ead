"""Everything that one capture tells: figures of every index over its layers and heads, as plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from .capture import Capture, Fact
from .cost import Shape, read_bytes
from .figures import Found, Truth, figures, retrieve_tokens, truth
from .outputs import four_bit_output, output_error
from .scene import Scene, cold_tokens, scenes
from .zoo import FOUR_BITS, Index

KINDS = ("text", "questions")
DIGITS = 5


@dataclass
class Tally:
    """What one index found with one budget, an item for each scene; queries of text come first."""

    recall: tuple[list[torch.Tensor], ...] = field(default_factory=lambda: ([], []))
    captured: list[torch.Tensor] = field(default_factory=list)
    of_exact: list[torch.Tensor] = field(default_factory=list)
    error: list[torch.Tensor] = field(default_factory=list)
    facts: list[torch.Tensor] = field(default_factory=list)

    def add(self, found: Found) -> None:
        """Add a scene."""
        for kept, recall in zip(self.recall, found.recall, strict=True):
            kept.append(recall)
        self.captured.append(found.captured)
        self.of_exact.append(found.captured / found.ceiling)
        if found.error is not None:
            self.error.append(found.error)

    def record(self, texts: int) -> dict[str, Any]:
        """Means of the two kinds of queries, and recall of the heaviest 4 by scene."""
        made: dict[str, Any] = {}
        for kind, queries in zip(KINDS, (slice(0, texts), slice(texts, None)), strict=True):
            parts = dict(zip(("top4", "top64"), self.recall, strict=True))
            parts |= {"captured": self.captured, "of_exact": self.of_exact}
            made[kind] = {name: _mean(torch.stack(values)[:, queries]) for name, values in parts.items()}
            made[kind]["top4_of_heads"] = [_mean(values[queries]) for values in self.recall[0]]
            if self.error:
                error = torch.stack(self.error)[:, queries].flatten()
                made[kind] |= {"error": _mean(error), "error_p90": round(float(error.quantile(0.9)), DIGITS)}
        made["facts"] = self.pairs.sum(dim=0).tolist()
        return made

    @property
    def pairs(self) -> torch.Tensor:
        """Of each fact the query heads that have it among their heaviest 4, kept and in all: int64 [F, 2]."""
        return torch.stack(self.facts).sum(dim=0)


def _mean(values: torch.Tensor) -> float | None:
    return round(float(values.mean()), DIGITS) if values.numel() else None


def facts_kept(scene: Scene, known: Truth, found: Found, texts: int, places: torch.Tensor) -> torch.Tensor:
    """Of each fact, ``places [F, 2]``, the query heads that have it among their heaviest 4, kept and in all: [F, 2]."""
    tops = known.top_of_head[texts:] + scene.cold.start  # [F, G, 4]
    there = (tops >= places[:, :1, None]) & (tops < places[:, 1:, None])
    kept = there & found.recall_of_head[texts:]
    return torch.stack([kept.any(dim=2).sum(dim=1), there.any(dim=2).sum(dim=1)], dim=1)


def needles(facts: Sequence[Fact], pairs: torch.Tensor) -> list[int]:
    """Pairs of single needles alone, kept and in all; ``pairs [F, 2]``."""
    of_needles = torch.tensor([fact.task == "needle" for fact in facts], dtype=torch.bool)
    return pairs[of_needles].sum(dim=0).tolist()


def measured(
    capture: Capture, zoo: Sequence[Index], budgets: Sequence[int], hot_tokens: int, text: slice, *, all_facts: bool
) -> dict[str, Any]:
    """Measure a capture.

    Parameters
    ----------
    budgets : sequence of int
        Candidates.
    text : slice
        Of the last positions, whose queries are asked.
    all_facts : bool
        Ask the questions too that the model did not answer.
    """
    asked = [i for i, fact in enumerate(capture.facts) if fact.right or all_facts]
    places = torch.tensor([capture.facts[i].place for i in asked]).reshape(-1, 2)
    tallies = {index.name: {budget: Tally() for budget in budgets} for index in zoo}
    cells: list[list[int]] = []
    four_bits: list[torch.Tensor] = []
    texts, shape = 0, Shape(0, 0, 0)
    for layer in tqdm(capture.layers, desc=capture.path.stem, unit="layer"):
        for head, scene in enumerate(scenes(capture, layer, asked, text, hot_tokens)):
            cells.append([layer, head])
            texts = len(scene.query) - len(asked)
            shape = Shape(scene.key.shape[1], scene.value.shape[1], scene.query.shape[1])
            known = truth(scene, budgets)
            for index in zoo:
                for budget, found in figures(scene, index, known, budgets).items():
                    tally = tallies[index.name][budget]
                    tally.add(found)
                    tally.facts.append(facts_kept(scene, known, found, texts, places))
            if FOUR_BITS in zoo:
                four_bits.append(output_error(scene, four_bit_output(scene)))
    count = cold_tokens(capture.tokens, hot_tokens)
    record: dict[str, Any] = {
        "tokens": capture.tokens,
        "cold": count,
        "hot": hot_tokens,
        "queries": {"text": texts, "questions": len(asked)},
        "budgets": list(budgets),
        "cells": cells,
        "indices": {
            index.name: {
                "index_bytes": round(index.cost(shape).index_bytes, 3),
                "read_bytes": [read_bytes(index.cost(shape), shape, count, b, retrieve_tokens(b)) for b in budgets],
                "found": [
                    tally.record(texts) | {"needles": needles([capture.facts[i] for i in asked], tally.pairs)}
                    for tally in tallies[index.name].values()
                ],
            }
            for index in zoo
        },
    }
    if four_bits:
        error = torch.cat([e.flatten() for e in four_bits])
        record["four_bits"] = {"error": _mean(error), "error_p90": round(float(error.quantile(0.9)), DIGITS)}
    return record
