"""What widening (SPEC 4.9) changes: figures of KIV's own index with twice the candidates where it asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from .capture import Capture
from .figures import truth, widened_figures
from .measure import DIGITS, KINDS, Tally, facts_kept
from .scene import scenes
from .zoo import NEW


def widened(
    capture: Capture, budgets: Sequence[int], hot_tokens: int, text: slice, *, all_facts: bool
) -> dict[str, Any]:
    """Measure KIV's own index on a capture, widened where SPEC 4.9 says so; arguments as those of `measured`."""
    asked = [i for i, fact in enumerate(capture.facts) if fact.right or all_facts]
    places = torch.tensor([capture.facts[i].place for i in asked]).reshape(-1, 2)
    tallies = {budget: Tally() for budget in budgets}
    where, at_default = ({budget: list[torch.Tensor]() for budget in budgets} for _ in range(2))
    cells: list[list[int]] = []
    texts = 0
    for layer in tqdm(capture.layers, desc=f"{capture.path.stem}, widened", unit="layer"):
        for head, scene in enumerate(scenes(capture, layer, asked, text, hot_tokens)):
            cells.append([layer, head])
            texts = len(scene.query) - len(asked)
            known = truth(scene, budgets)
            for budget, (found, widens, by_default) in widened_figures(scene, NEW, known, budgets).items():
                tallies[budget].add(found)
                tallies[budget].facts.append(facts_kept(scene, known, found, texts, places))
                where[budget].append(widens)
                at_default[budget].append(by_default)
    of_facts = [[capture.facts[i].task, round(capture.facts[i].place[0] / capture.tokens, DIGITS)] for i in asked]
    return {
        "budgets": list(budgets),
        "cells": cells,
        "facts": of_facts,
        "found": [
            tally.record(texts)
            | {
                "widened": _shares(where[budget], texts),
                "widened_at_default": _shares(at_default[budget], texts),
                "pairs": tally.pairs.tolist(),
            }
            for budget, tally in tallies.items()
        ],
    }


def _shares(where: list[torch.Tensor], texts: int) -> dict[str, Any]:
    """Share of the queries that are widened, of each kind and of each KV head, from bool [Q] of each KV head."""
    found = torch.stack(where).float()  # [cells, Q]
    shares: dict[str, Any] = {}
    for kind, queries in zip(KINDS, (found[:, :texts], found[:, texts:]), strict=True):
        shares[kind] = round(float(queries.mean()), DIGITS) if queries.numel() else None
    shares["of_heads"] = [round(share, DIGITS) for share in found.mean(dim=1).tolist()]
    return shares
