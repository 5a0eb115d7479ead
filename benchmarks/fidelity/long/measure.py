"""Everything that one capture tells: figures of every index over its layers and heads, as plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from .capture import Capture
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
    facts: list[tuple[int, int]] = field(default_factory=list)

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
        made["facts"] = [sum(pair[i] for pair in self.facts) for i in range(2)]
        return made


def _mean(values: torch.Tensor) -> float | None:
    return round(float(values.mean()), DIGITS) if values.numel() else None


def facts_kept(scene: Scene, known: Truth, found: Found, texts: int, places: torch.Tensor) -> tuple[int, int]:
    """Pairs of a fact and a query head that has it among its heaviest 4, kept and in all; ``places [F, 2]``."""
    tops = known.top_of_head[texts:] + scene.cold.start  # [F, G, 4]
    there = (tops >= places[:, :1, None]) & (tops < places[:, 1:, None])
    kept = there & found.recall_of_head[texts:]
    return int(kept.any(dim=2).sum()), int(there.any(dim=2).sum())


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
                "found": [tallies[index.name][budget].record(texts) for budget in budgets],
            }
            for index in zoo
        },
    }
    if four_bits:
        error = torch.cat([e.flatten() for e in four_bits])
        record["four_bits"] = {"error": _mean(error), "error_p90": round(float(error.quantile(0.9)), DIGITS)}
    return record
