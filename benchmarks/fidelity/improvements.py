"""What would make the default better: variants of KIV's rule, chosen on one half of the data and reported on the other.

Chosen on: the first text, even layers, positions 0, 8, 16, … of the last 64. Reported on: the other text, odd layers,
positions 4, 12, 20, …. Gemma 3 270M has three global layers only; all of them are in both halves. What is chosen for a
single layer or head (`dense_layers`, `budgets`) has every layer in both halves of both models.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.models import MODELS
from benchmarks.report import Result

from . import budgets, dense_layers, pareto
from .costs import ORIGINAL_AT_1M, cost_at_1m
from .halves import CHOSEN_ON, REPORTED, halves
from .measure import Statistics, measure, tallies
from .richer_scores import mean_plus_deviation, mean_plus_direction, quantised, sub_pages, two_anchors
from .rows import KIV, KIV_256, ORACLE, SPEC_TAIL, kiv_knob
from .rules import Rule
from .scores import TRUE_MAXIMUM, PageScore, mean_plus_spread
from .tails import Tail
from .unrotated import unrotated

INT4 = quantised(0.5, 4, 4, "channel", 64)
INT4_INT2 = quantised(0.5, 4, 2, "channel", 64)
INT2 = quantised(0.5, 2, 2, "channel", 128)


def _scores() -> list[Rule]:
    """Other summaries of a page, in bfloat16."""
    found = [
        two_anchors("principal", 0, shared=False),
        two_anchors("principal", 0.4, shared=True),
        two_anchors("order", 0.4, shared=True),
        sub_pages(4, 0, shared=False),
        sub_pages(4, 0.4, shared=True),
        sub_pages(4, 0.4, shared=False),
        mean_plus_direction(1.0, 0.4),
        mean_plus_deviation(3.0),
        unrotated(0.3),
        unrotated(0.5),
    ]
    return [replace(KIV, name=f"score: {score.name}", score=score) for score in found]


def _quantised() -> list[Rule]:
    """The same summary in fewer bits, and the smaller pages that this pays for; larger pages."""
    found: list[Rule] = []
    for page, score in (
        (64, quantised(0.5, 8, 4, "vector")),
        (64, quantised(0.5, 8, 8, "channel", 64)),
        (64, INT4),
        (64, INT4_INT2),
        (64, INT2),
        (128, mean_plus_spread(0.5)),
        (32, mean_plus_spread(0.5)),
        (32, INT4),
        (32, INT4_INT2),
        (32, INT2),
        (16, mean_plus_spread(0.5)),
        (16, INT4),
        (16, INT4_INT2),
        (16, INT2),
        (8, INT4_INT2),
        (8, INT2),
    ):
        found.append(replace(KIV, name=f"index: P {page}, {score.name}", page_tokens=page, score=score))
    return found


def _tails() -> list[Rule]:
    tails = {
        "none": None,
        "near mass by the mean key": Tail(near="mean"),
        "near value of the unselected": Tail(near_value="rest"),
        "span mass from page scores": Tail(span_mass="pages"),
        "a pseudo-token each for as many pages again": Tail(next_tokens=4096),
        "spans of 512": Tail(span_tokens=512),
        "spans of 8192": Tail(span_tokens=8192),
        "no shift": Tail(shift=0.0),
        "shift 0.25": Tail(shift=0.25),
        "shift 0.75": Tail(shift=0.75),
        "shift 1": Tail(shift=1.0),
        "shift fades with power 1": Tail(shift_power=1.0),
        "shift fades with power 2": Tail(shift_power=2.0),
        "shift fades with power 8": Tail(shift_power=8.0),
    }
    return [kiv_knob(f"tail: {name}", tail=tail) for name, tail in tails.items()]


def _selections() -> list[Rule]:
    return [
        KIV_256,
        kiv_knob("selection: R 1024", retrieve_tokens=1024),
        kiv_knob("candidates: twice as many", candidate_factor=2.0),
        kiv_knob("candidates: 4-bit keys", key_bits=4),
        kiv_knob("candidates: twice as many, 4-bit keys", key_bits=4, candidate_factor=2.0),
        kiv_knob("candidates: 4 times as many, 4-bit keys", key_bits=4, candidate_factor=4.0),
        kiv_knob("candidates: twice as many, 3-bit keys", key_bits=3, candidate_factor=2.0),
        kiv_knob("selection: each head its own 256", token_group="head", retrieve_tokens=256),
        kiv_knob("selection: each head its own 96", token_group="head", retrieve_tokens=96),
        kiv_knob("selection: by logit + log of the value's distance", value_weight=1.0),
        kiv_knob("selection: R up to 1024, share of a token at least 3e-4", retrieve_tokens=1024, least_share=3e-4),
        kiv_knob("selection: R up to 1024, share of a token at least 1e-3", retrieve_tokens=1024, least_share=1e-3),
    ]


def _together() -> list[Rule]:
    """What pays, combined."""

    def packed(page: int, score: PageScore, factor: float) -> Rule:
        name = f"all: P {page}, {score.name}, 4-bit candidates x {factor:g}"
        return replace(KIV, name=name, page_tokens=page, score=score, key_bits=4, candidate_factor=factor)

    return [
        packed(64, INT4, 1.0),
        packed(64, INT4, 2.0),
        packed(32, INT4, 1.0),
        packed(32, INT4, 2.0),
        packed(32, INT2, 2.0),
        packed(16, INT4, 2.0),
        packed(16, INT4, 4.0),
        packed(16, INT2, 2.0),
        packed(8, INT2, 2.0),
        replace(KIV, name=f"ceiling: page's true maximum, P {KIV.page_tokens}", score=TRUE_MAXIMUM),
        replace(ORACLE, name="exact top-256 + tail", page_tokens=KIV.page_tokens, tail=SPEC_TAIL),
        replace(KIV, name=f"exact top-{KIV.retrieve_tokens} + tail", score=None),
    ]


def variants() -> list[Rule]:
    """Every rule of this part, the default and the oracle first."""
    return [KIV, ORACLE, *_scores(), *_quantised(), *_tails(), *_selections(), *_together()]


def run(options: argparse.Namespace) -> Result:
    """Measure every variant on both halves and rank them by what they save of the default's error."""
    models = list(options.models)
    rules = variants()
    settings = {"R": KIV.retrieve_tokens, "sinks": 4}
    result = Result("fidelity_improvements", "What would make KIV's default better", settings)
    found: dict[str, dict[str, dict[str, Statistics]]] = {}
    for model in models:
        found[model] = {
            half: measure(rules, where, every) for half, (where, every) in halves(model, options.quick).items()
        }
        result.series[model] = {
            "points": {rule.name: _point(rule, model, found[model][REPORTED][rule.name]) for rule in rules}
        }
    _table(result, rules, models, found)
    for model in models:
        _single(result, model, options.quick)
    result.notes += [
        "Change: mean over both models of the logarithm of the error against the default's, on the reported half, as a "
        "percentage; rows are in the order of the same figure on the half to choose on.",
        f"Device and moved bytes as at the attention level, for {ORIGINAL_AT_1M.name}. Rows named after a change to "
        "one part of the rule leave all others as in the default.",
        (__doc__ or "").split("\n\n")[1].replace("\n", " ").strip(),
        *dense_layers.NOTES,
        *budgets.NOTES,
    ]
    return result


def _single(result: Result, model: str, quick: bool) -> None:
    """Tables of what is chosen for single layers and heads."""
    rules = [KIV, dense_layers.TWICE, *budgets.SELECTED.rules.values(), *budgets.PAGES.rules.values()]
    parts = halves(model, quick, all_layers=True)
    found = {half: tallies(rules, where, every) for half, (where, every) in parts.items()}
    dense_layers.add_dense(result, model, found)
    budgets.add_budgets(result, model, found)


def _point(rule: Rule, model: str, found: Statistics) -> dict[str, float]:
    device, moved = cost_at_1m(rule, model, found).megabytes
    return {"error": found.mean, "device": device, "moved": moved}


def _table(
    result: Result, rules: Sequence[Rule], models: Sequence[str], found: dict[str, dict[str, dict[str, Statistics]]]
) -> None:
    def change(rule: Rule, half: str) -> float:
        product = 1.0
        for model in models:
            product *= found[model][half][rule.name].mean / found[model][half][KIV.name].mean
        return product ** (1 / len(models)) - 1

    columns = ["rule", "change, chosen on", "change, reported"]
    for model in models:
        title = MODELS[model].title
        columns += [f"{title}: error", "p90", "worst layer"]
    table = result.table("Ranked variants", *columns, "device MB at 1M", "moved MB a step")
    for rule in sorted(rules, key=lambda rule: change(rule, CHOSEN_ON)):
        cells_: list[str | int | float | None] = [rule.name]
        cells_ += [f"{change(rule, half):+.1%}" for half in (CHOSEN_ON, REPORTED)]
        for model in models:
            mine = found[model][REPORTED][rule.name]
            cells_ += [mine.mean, mine.p90, mine.worst_layer]
        price = _point(rule, models[0], found[models[0]][REPORTED][rule.name])
        table.add(*cells_, price["device"], price["moved"])


def draw(result: Result) -> pareto.Draw:
    """Return the painter of the picture."""
    return pareto.painter({MODELS[model].title: found["points"] for model, found in result.series.items()})
