"""Layers that stay dense: which would have to attend to every token to lower the default's error most, at which cost.

Keys and values of a model's global layers are of one size, so every dense layer costs the same: the ones to choose are
those of the largest error. Places that need no measurement (the first, the last, every 8th) stand beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch

from benchmarks.models import MODELS
from benchmarks.report import Result

from .costs import ORIGINAL_AT_1M, cost_at_1m, dense_cost, mixed
from .halves import CHOSEN_ON, REPORTED, changes
from .measure import Statistics, Tally, statistics
from .rows import KIV
from .rules import Rule
from .scene import SETTINGS

WORST = (1, 2, 4, 8)
"""How many layers of the largest error are dense."""

TWICE = replace(KIV, name="R 1024 in all layers", retrieve_tokens=1024)
"""Shown beside the dense layers: what twice the selected tokens give, for 1.6 MB more in a step."""

NOTES = [
    "Layers that stay dense: every layer is in both halves, which share no text and no position. The layers of the "
    "largest error are those of the half to choose on; in brackets, their indices in the model. A dense layer counts "
    "with error 0. Errors are of single layers on the keys and values of full attention: what a dense layer spares "
    "the layers after it is not in the figures.",
    f"Bytes of dense layers: as if the same share of the layers of {ORIGINAL_AT_1M.name} were dense, with all tokens "
    "held on the device in bfloat16, or the cold ones in host memory and moved in each step.",
]


class Policy(NamedTuple):
    """Layers to keep dense, by index in the model."""

    name: str
    layers: tuple[int, ...]


def policies(errors: Mapping[int, float]) -> list[Policy]:
    """Every policy for a model whose layers err so, in the order of its layers; none at all is the first."""
    layers = list(errors)
    worst = sorted(layers, key=lambda layer: -errors[layer])
    found = [
        Policy("none: the default", ()),
        Policy("the first", tuple(layers[:1])),
        Policy("the last", tuple(layers[-1:])),
        Policy("the first two", tuple(layers[:2])),
        Policy("the first and the last", (layers[0], layers[-1])),
        Policy("every 8th", tuple(layers[::8])),
        Policy("every 4th", tuple(layers[::4])),
    ]
    found += [Policy(f"largest error: {n}", tuple(sorted(worst[:n]))) for n in WORST]
    few = [policy for policy in found if len(policy.layers) < len(layers)]
    return [p for p in few if not p.name.startswith("every") or len(p.layers) > 1]


def with_dense(tally: Tally, layers: tuple[int, ...]) -> Tally:
    """What a rule gives if some layers attend to every token: no error there, all mass captured.

    Tokens read stay those of the rule: what is read densely depends on the context alone, and `costs` counts it.
    """

    def where(parts: list[torch.Tensor], value: float) -> list[torch.Tensor]:
        found = zip(tally.cells, parts, strict=True)
        return [torch.full_like(part, value) if cell.layer in layers else part for cell, part in found]

    return replace(tally, errors=where(tally.errors, 0.0), captured=where(tally.captured, 1.0))


def add_dense(result: Result, model: str, found: Mapping[str, Mapping[str, Tally]]) -> None:
    """Add the table of a model from what `KIV` and `TWICE` gave on each half, by the name of the rule."""
    table = result.table(
        f"{MODELS[model].title}: layers that stay dense",
        "dense layers",
        "change, chosen on",
        "change, reported",
        "error",
        "p90",
        "worst layer",
        "held: device MB at 1M",
        "moved MB a step",
        "streamed: device MB at 1M",
        "moved MB a step",
    )
    base = {half: statistics(tallies[KIV.name]) for half, tallies in found.items()}
    layers = len(base[CHOSEN_ON].layer_means)

    def row(name: str, rule: Rule, dense: tuple[int, ...]) -> None:
        mine = {half: statistics(with_dense(tallies[rule.name], dense)) for half, tallies in found.items()}
        here = mine[REPORTED]
        prices: list[float] = []
        for streamed in (False, True):
            prices += price(rule, model, here, len(dense) / layers, streamed)
        table.add(name, *changes(mine, base), here.mean, here.p90, here.worst_layer, *prices)

    for policy in policies(base[CHOSEN_ON].layer_means):
        which = f" ({', '.join(str(layer) for layer in policy.layers)})" if policy.layers else ""
        row(policy.name + which, KIV, policy.layers)
    row(f"none: {TWICE.name}", TWICE, ())
    result.series[model]["layer errors"] = {half: each.layer_means for half, each in base.items()}


def price(rule: Rule, model: str, found: Statistics, share: float, streamed: bool) -> tuple[float, float]:
    """Device and moved megabytes where `share` of the layers is dense."""
    dense = dense_cost(SETTINGS[model], ORIGINAL_AT_1M, streamed)
    return mixed(cost_at_1m(rule, model, found), dense, share).megabytes
