"""Attention level: captured mass and output error of rules on real queries, keys and values, beside their cost.

No model quality is involved. The protocol of the earlier figures is run first and compared with them; then all rules
over several texts and lengths, as tables and as a picture of error against device bytes and against bytes moved.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict

from benchmarks.models import MODELS
from benchmarks.report import Result, Table

from . import pareto
from .capture import TEXTS
from .costs import ORIGINAL_AT_1M, cost_at_1m
from .measure import Cell, Statistics, cells, measure, scenes
from .reference_check import compare
from .rows import KIV, KIV_256, ORACLE, PARETO, PUBLISHED, PUBLISHED_SPARSE
from .rules import Rule
from .scene import EARLIER, SETTINGS, TOP_TOKENS

PROTOCOL_LENGTH = {"gemma": 16384, "smollm2": 8192}
"""Context lengths of the earlier figures, which used the queries of the last 64 positions, every fourth."""

MAIN_LENGTHS = {"gemma": (8192, 16384, 32768), "smollm2": (6144, 8192)}
"""Context lengths of the main table."""


def run(options: argparse.Namespace) -> Result:
    """Measure everything of this level."""
    models = list(options.models)
    result = Result(
        "fidelity_attention",
        "Attention level: what a rule keeps, on real queries, keys and values",
        {
            "texts": ", ".join(TEXTS),
            "sinks": 4,
            "R": f"{KIV.retrieve_tokens}, oracles and other rules {TOP_TOKENS}",
            "hot": " / ".join(str(SETTINGS[m].hot_tokens) for m in models),
            "candidate tokens": SETTINGS[models[0]].candidate_tokens,
            "models": ", ".join(MODELS[m].title for m in models),
        },
    )
    _reference(result, models, options.quick)
    for model in models:
        _published(result, model, options.quick)
    for model in models:
        _main(result, model, options.quick)
    result.notes += NOTES
    return result


NOTES = [
    "captured: share of the cold softmax mass attended exactly. Error: norm of the difference from the output of full "
    "attention, relative to it, for a query head; worst layer is the largest mean of a layer. Tokens read: distinct "
    "cold tokens whose key, value a KV head had to read for a query.",
    f"Device and moved bytes are counted for {ORIGINAL_AT_1M.name}, with the token counts measured here; moved is a "
    "decode step, all layers. KIV's rules: what kiv-fast holds on a CPU (8-bit index of page summaries, float32 spans, "
    "sinks and hot, last pages, buffers). Rules of others: bfloat16 summaries, sinks and hot, one layer's staging. "
    "An oracle looks at every key: it is charged for moving them all in tiles, and for no index.",
    "KIV, default: KIVConfig() but for the hot window. The earlier figures had 2,048 candidate tokens on "
    "SmolLM2-135M-Instruct: that is the row of 64 candidate pages, and the setting of the tables of earlier figures.",
    "Which eighth of the last 64 positions the sparser earlier figures used is not known; rows of both start at the "
    "positions in brackets. Eight positions are few: the two differ by more than most rules do.",
    "All rules see the same cold tokens (a multiple of 128), so hot is up to 127 tokens longer than its setting.",
]


def main_cells(model: str, quick: bool) -> list[Cell]:
    """Scenes of the main table."""
    if quick:
        return list(cells(model, "genesis", MAIN_LENGTHS[model][0]))[:2]
    return [cell for text in TEXTS for length in MAIN_LENGTHS[model] for cell in cells(model, text, length)]


def _reference(result: Result, models: Sequence[str], quick: bool) -> None:
    table = result.table(
        "KIV's row against the reference's own functions",
        "model",
        "queries",
        "largest relative difference of an output",
        "other tokens",
    )
    for model in models:
        found = list(cells(model, "genesis", PROTOCOL_LENGTH[model]))
        sampled = found[:1] if quick else [found[0], found[len(found) // 2], found[-1]]
        parts = [compare(scene, SETTINGS[model], 2) for _, scene in scenes(sampled, slice(0, None, 4))]
        worst = max(part.output for part in parts)
        other = sum(part.tokens for part in parts) / len(parts)
        table.add(MODELS[model].title, sum(part.queries for part in parts), worst, f"{other:.2%}")


def _published(result: Result, model: str, quick: bool) -> None:
    """Rules with earlier figures, by the protocol of those figures, and on the other text."""
    length = PROTOCOL_LENGTH[model]
    table = result.table(
        f"Earlier figures again: {MODELS[model].title}, {length:,} tokens, every 4th position; then every 8th",
        "rule",
        "captured",
        "published",
        "error",
        "published",
        "ratio",
        "other text: captured",
        "error",
    )

    def both(rules: Sequence[Rule], every: slice) -> list[dict[str, Statistics]]:
        places = [list(cells(model, text, length))[: 2 if quick else None] for text in TEXTS]
        return [measure(rules, where, every, EARLIER) for where in places]

    found, other = both([rule for rule, _ in PUBLISHED], slice(0, None, 4))
    for rule, published in PUBLISHED:
        captured, error = published[model]
        mine = found[rule.name]
        ratio = None if error is None else mine.mean / error
        there = other[rule.name]
        table.add(rule.name, mine.captured, captured, mine.mean, error, ratio, there.captured, there.mean)
    for start in (0, 4):  # which eighth of the positions the earlier figures used is not known: both are shown
        found, other = both([rule for rule, _ in PUBLISHED_SPARSE], slice(start, None, 8))
        for rule, errors in PUBLISHED_SPARSE:
            mine, there = found[rule.name], other[rule.name]
            ratio = mine.mean / errors[model]
            name = f"({start}, {start + 8}, …) {rule.name}"
            table.add(name, mine.captured, None, mine.mean, errors[model], ratio, there.captured, there.mean)
    ratios = [row[5] for row in table.rows if isinstance(row[5], float)]
    near = sum(abs(ratio - 1) <= 0.1 for ratio in ratios)
    result.notes.append(
        f"{MODELS[model].title}: {near} of {len(ratios)} errors agree with the earlier ones within 10 %; "
        f"ratios {min(ratios):.2f} to {max(ratios):.2f}."
    )


def statistics_table(result: Result, title: str) -> Table:
    """Start a table whose rows `add_statistics` writes."""
    return result.table(
        title,
        "rule",
        "captured",
        "error: mean",
        "p50",
        "p90",
        "worst layer",
        "keys read",
        "values read",
        "device MB at 1M",
        "moved MB a step",
    )


def add_statistics(table: Table, rule: Rule, model: str, found: Statistics) -> tuple[float, float]:
    """Add a row; return device and moved megabytes."""
    device, moved = cost_at_1m(rule, model, found).megabytes
    table.add(
        rule.name,
        found.captured,
        found.mean,
        found.p50,
        found.p90,
        found.worst_layer,
        found.key_tokens,
        found.value_tokens,
        device,
        moved,
    )
    return device, moved


def _main(result: Result, model: str, quick: bool) -> None:
    lengths = "/".join(str(n) for n in MAIN_LENGTHS[model])
    table = statistics_table(result, f"{MODELS[model].title}: {len(TEXTS)} texts, {lengths} tokens, every 8th position")
    found = measure(PARETO, main_cells(model, quick), slice(2, None, 8))
    points: dict[str, dict[str, float]] = {}
    for rule in PARETO:
        device, moved = add_statistics(table, rule, model, found[rule.name])
        points[rule.name] = {"error": found[rule.name].mean, "device": device, "moved": moved}
    result.series[model] = {
        "points": points,
        "statistics": {name: asdict(statistics) for name, statistics in found.items()},
    }
    oracle = found[ORACLE.name]
    for rule in (KIV_256, KIV):
        mine = found[rule.name]
        result.target(f"{MODELS[model].title}: mean error of {rule.name} below exact top-256", oracle.mean, mine.mean)
        result.target(f"{MODELS[model].title}: p90 of the same", oracle.p90, mine.p90)
    if model == "gemma":
        result.target("device bytes of the default at 1M", 100.0, points[KIV.name]["device"], "MB")


def draw(result: Result) -> pareto.Draw:
    """Return the painter of the picture."""
    return pareto.painter({MODELS[model].title: found["points"] for model, found in result.series.items()})
