"""Budgets of single heads: R, or candidate pages, unequal among KV heads or layers, with the same total.

One row beside them has more in total: the layer that errs most has the largest budget, the others keep theirs.

Every budget of a grid is measured on both halves. A KV head retrieves on its own, so any mixture of budgets is made of
what was measured: each head's figures are those of its budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from kiv_reference.config import KIVConfig

from benchmarks.models import MODELS
from benchmarks.report import Result

from .costs import cost_at_1m
from .halves import CHOSEN_ON, REPORTED, changes
from .measure import Tally, statistics
from .rows import KIV, RETRIEVE_TOKENS, kiv_knob
from .rules import Rule
from .splits import nearest, split

ByBudget = Mapping[int, Tally]

DEFAULT_PAGES = KIVConfig().candidate_pages


@dataclass(frozen=True)
class Grid:
    """Budgets of one kind: a rule for each, and what a head has on average."""

    letter: str
    rules: Mapping[int, Rule]
    averages: tuple[int, ...]


assert RETRIEVE_TOKENS is not None, "an exact default has no budget"
R_OPTIONS = (64, 128, 192, 256, 384, 512, 640, 768, 1024, 1280, 1536, 2048, 4096)
C_OPTIONS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
SELECTED = Grid("R", {n: kiv_knob(f"R {n}", retrieve_tokens=n) for n in R_OPTIONS}, (RETRIEVE_TOKENS,))
PAGES = Grid("C", {n: kiv_knob(f"C {n}", candidate_factor=n / DEFAULT_PAGES) for n in C_OPTIONS}, (DEFAULT_PAGES, 32))

NOTES = [
    "Budgets of heads: every layer is in both halves, which share no text and no position; what a KV head gets is "
    "chosen on one and reported on the other, at the same total, by 8 positions at each length. In proportion: to the "
    "error, or to the share of the cold mass that is not selected, both under equal budgets. As measured: what gives "
    "the least mean error on the half to choose on. Layers: all KV heads of a layer alike. R is one of "
    f"{', '.join(map(str, R_OPTIONS))}, C one of {', '.join(map(str, C_OPTIONS))}. The last row of a kind has more in "
    "total. Change: of the mean error, against equal budgets. The device's buffers are counted for the largest budget.",
    f"SmolLM2's contexts are shorter than {DEFAULT_PAGES} pages of {KIV.page_tokens}: every cold page is a candidate, "
    "and more pages change nothing for a head. So a total of 32 pages a head stands beside it.",
]


def head_means(tally: Tally, parts: list[torch.Tensor]) -> torch.Tensor:
    """Mean of ``[H, Q, G]`` parts of a tally for each layer and KV head, ``[L, H]``, layers in the tally's order."""
    layers = dict.fromkeys(cell.layer for cell in tally.cells)
    found = zip(tally.cells, parts, strict=True)
    rows = [(cell.layer, part.mean(dim=(1, 2))) for cell, part in found]
    return torch.stack([torch.stack([r for at, r in rows if at == layer]).mean(dim=0) for layer in layers])


def mixture(by_budget: ByBudget, budgets: Mapping[int, list[int]]) -> Tally:
    """What a rule gives with `budgets`: layer -> one for each KV head."""
    made = Tally()
    for i, cell in enumerate(next(iter(by_budget.values())).cells):
        theirs = [by_budget[budget] for budget in budgets[cell.layer]]
        made.cells.append(cell)
        made.errors.append(torch.stack([tally.errors[i][h] for h, tally in enumerate(theirs)]))
        made.captured.append(torch.stack([tally.captured[i][h] for h, tally in enumerate(theirs)]))
        made.key_tokens.append(torch.stack([tally.key_tokens[i][h] for h, tally in enumerate(theirs)]))
        made.value_tokens.append(torch.stack([tally.value_tokens[i][h] for h, tally in enumerate(theirs)]))
    return made


def _in_proportion(weights: torch.Tensor, options: list[int], average: int) -> torch.Tensor:
    return nearest(weights * average / weights.mean(), options)


def choices(by_budget: ByBudget, average: int) -> dict[str, torch.Tensor]:
    """Name of a way to choose -> costs ``[L, H, N]`` of the budgets of each head."""
    options, even = list(by_budget), by_budget[average]
    errors, missed = head_means(even, even.errors), 1 - head_means(even, even.captured)

    def proportional(weights: torch.Tensor) -> torch.Tensor:
        return _in_proportion(weights.flatten(), options, average).unflatten(0, weights.shape)

    return {
        "in proportion to the error": proportional(errors),
        "in proportion to the mass missed": proportional(missed),
        "as measured": torch.stack([head_means(t, t.errors) for t in by_budget.values()], dim=2),
    }


def budgets_of_heads(costs: torch.Tensor, options: list[int], average: int) -> torch.Tensor:
    """Budgets ``[L, H]``, each head its own."""
    layers, heads = costs.shape[:2]
    found = split(costs.flatten(0, 1), options, layers * heads * average)
    return torch.tensor(found).unflatten(0, (layers, heads))


def budgets_of_layers(costs: torch.Tensor, options: list[int], average: int) -> torch.Tensor:
    """Budgets ``[L, H]``, all heads of a layer alike."""
    layers, heads = costs.shape[:2]
    return torch.tensor(split(costs.sum(dim=1), options, layers * average))[:, None].expand(-1, heads)


WHO: dict[str, Callable[[torch.Tensor, list[int], int], torch.Tensor]] = {
    "heads": budgets_of_heads,
    "layers": budgets_of_layers,
}


def ways(by_budget: ByBudget, average: int) -> Iterator[tuple[str, dict[int, list[int]]]]:
    """Every way to give budgets, by what was measured: its name, and layer -> a budget a KV head.

    Equal ones first; the last one alone gives more than `average` a head.
    """
    errors = statistics(by_budget[average]).layer_means
    layers, heads = list(errors), len(by_budget[average].errors[0])
    equal = {layer: [average] * heads for layer in layers}
    yield f"{average} for all", equal
    for way, costs in choices(by_budget, average).items():
        for who, budget in WHO.items():
            if who == "heads" or heads > 1:  # with one KV head a layer, both are the same
                given = budget(costs, list(by_budget), average)
                yield f"{average} on average, {who} {way}", dict(zip(layers, given.tolist(), strict=True))
    worst, most = max(layers, key=lambda layer: errors[layer]), max(by_budget)
    yield f"{average} for all but {most} in the layer that errs most ({worst})", equal | {worst: [most] * heads}


def add_budgets(result: Result, model: str, found: Mapping[str, Mapping[str, Tally]]) -> None:
    """Add the table of a model from what every rule of both grids gave on each half, by the name of the rule."""
    table = result.table(
        f"{MODELS[model].title}: budgets of single heads",
        "budgets",
        "smallest to largest",
        "change, chosen on",
        "change, reported",
        "error",
        "p90",
        "worst layer",
        "device MB at 1M",
        "moved MB a step",
    )
    chosen: dict[str, dict[int, list[int]]] = {}
    for grid in (SELECTED, PAGES):
        halves = {half: {n: tallies[rule.name] for n, rule in grid.rules.items()} for half, tallies in found.items()}
        for average in grid.averages:
            even = {half: statistics(by_budget[average]) for half, by_budget in halves.items()}
            for way, given in ways(halves[CHOSEN_ON], average):
                mine = {half: statistics(mixture(by_budget, given)) for half, by_budget in halves.items()}
                single = [budget for of_layer in given.values() for budget in of_layer]
                span = f"{min(single)} to {max(single)}"
                here, name = mine[REPORTED], f"{grid.letter} {way}"
                prices = cost_at_1m(grid.rules[max(single)], model, here).megabytes  # of the largest budget's buffers
                table.add(name, span, *changes(mine, even), here.mean, here.p90, here.worst_layer, *prices)
                chosen[name] = given
    result.series[model]["budgets"] = chosen
