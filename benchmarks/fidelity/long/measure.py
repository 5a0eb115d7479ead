"""Everything that one capture tells: figures of every index over its layers and heads, as plain numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from .figures import Found, Truth, figures, truth
from .scene import Scene, cold_tokens, scenes
from .zoo import ZOO

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .capture import Capture

KINDS = ("text", "questions")
DIGITS = 5


def summary(cells: Sequence[Found], facts: Sequence[torch.Tensor], texts: int) -> dict[str, Any]:
    """Average what an index found in all cells, layers' KV heads, by kind of query; queries of text come first.

    Parameters
    ----------
    facts : sequence of int64 [F, 2]
        Of each cell, what `facts_kept` tells.
    """
    made: dict[str, Any] = {}
    for kind, queries in zip(KINDS, (slice(0, texts), slice(texts, None)), strict=True):
        made[kind] = {}
        for name in ("top4", "top64", "of_exact", "doubled", "doubled_at_default"):
            made[kind][name] = _mean(torch.stack([getattr(found, name).float() for found in cells])[:, queries])
        errors = [found.error for found in cells if found.error is not None]
        if errors:
            error = torch.stack(errors)[:, queries].flatten()
            p90 = round(float(error.quantile(0.9)), DIGITS) if error.numel() else None
            made[kind] |= {"error": _mean(error), "error_p90": p90}
    made["doubled"] = _mean(torch.stack([found.doubled.float() for found in cells]))
    made["pairs"] = torch.stack(list(facts)).sum(dim=0).tolist()
    return made


def _mean(values: torch.Tensor) -> float | None:
    return round(float(values.mean()), DIGITS) if values.numel() else None


def facts_kept(scene: Scene, known: Truth, found: Found, texts: int, places: torch.Tensor) -> torch.Tensor:
    """Count the query heads that have each fact, ``places [F, 2]``, among their heaviest 4, kept and in all: [F, 2]."""
    tops = known.top_of_head[texts:] + scene.cold.start  # [F, G, 4]
    there = (tops >= places[:, :1, None]) & (tops < places[:, 1:, None])
    kept = there & found.recall_of_head[texts:]
    return torch.stack([kept.any(dim=2).sum(dim=1), there.any(dim=2).sum(dim=1)], dim=1)


def measured(
    capture: Capture, counts: Sequence[int], hot_tokens: int, text: slice, *, all_facts: bool
) -> dict[str, Any]:
    """Measure a capture.

    Parameters
    ----------
    counts : sequence of int
        Candidates.
    text : slice
        Of the last positions, whose queries are asked.
    all_facts : bool
        Ask the questions too that the model did not answer.
    """
    asked = [i for i, fact in enumerate(capture.facts) if fact.right or all_facts]
    places = torch.tensor([capture.facts[i].place for i in asked]).reshape(-1, 2)
    found: dict[tuple[str, int], tuple[list[Found], list[torch.Tensor]]] = {
        (index.name, count): ([], []) for index in ZOO for count in counts
    }
    heads, texts, width = 0, 0, 0
    for layer in tqdm(capture.layers, desc=capture.name, unit="layer"):
        for scene in scenes(capture, layer, asked, text, hot_tokens):
            heads += 1
            texts = len(scene.query) - len(asked)
            width = scene.key.shape[1]
            known = truth(scene, counts)
            for index in ZOO:
                for count, of_scene in figures(scene, index, known, counts).items():
                    cells, facts = found[index.name, count]
                    cells.append(of_scene)
                    facts.append(facts_kept(scene, known, of_scene, texts, places))
    return {
        "tokens": capture.tokens,
        "cold": cold_tokens(capture.tokens, hot_tokens),
        "heads": heads,
        "queries": {"text": texts, "questions": len(asked)},
        "facts": [capture.facts[i].task for i in asked],
        "candidates": list(counts),
        "indices": {
            index.name: {
                "index_bytes": round(index.index_bytes(width), 3),
                "found": [summary(*found[index.name, count], texts) for count in counts],
            }
            for index in ZOO
        },
    }
