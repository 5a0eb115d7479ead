"""Rivals a user has today, on the same prompts: quality, decode time beside a `DynamicCache`, and memory.

Quality is that of the model level and the task level, whose journals are read, and completed if need be. The presses of
kvpress need another version of transformers: they are measured by a command of their own (`presses.py`), with their own
full attention beside them, and shown here if its result is there.

Decode times are taken at two contexts, if a model has two: caches whose step grows with the context part from those
whose step does not. All systems hold their copy at once: at 32,768 tokens of Gemma 3 270M that is below 2 GiB.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks.models import MODELS
from benchmarks.report import Result, Table

from . import model_level, rival_costs, task_level
from .documents import TEXTS
from .journal import open_journal
from .plan import HOT_TOKENS, context_lengths
from .presses import RESULT
from .systems import FULL, systems
from .task_level import Outcome, kept

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MB = 1e6
SHORT_TOKENS = 8192
COLUMNS = (
    "system",
    "KL, mean (nats)",
    "top-1 agreement",
    "retention, all tasks",
    "decode time ÷ DynamicCache",
    "ms a step",
    "cache MB",
    "transient MB a step",
)


def run(options: argparse.Namespace) -> Result:
    """Measure what is missing and put everything beside each other."""
    agreement, missing = model_level.measure(options)
    answers, outcomes, _ = task_level.measure(options)
    costs = open_journal(options, "rivals")
    result = Result("fidelity_rivals", "Rivals a user has today, on the same prompts", {"seed": options.seed})
    for model in options.models:
        tested = [s for s in systems(model, options.impl) if s.name not in missing[model]]
        for length in timed_lengths(model, options):
            found = costs.measured(
                (model, str(length)),
                lambda m=model, n=length, t=tested: rival_costs.record(m, next(iter(TEXTS)), n, t, options.quick),
            )
            title = f"{MODELS[model].title}: {length:,} tokens, hot {HOT_TOKENS[model]}"
            table = result.table(title, *COLUMNS)
            base = found["step_ms"][FULL]
            for system in systems(model, options.impl):
                name = system.name
                if name in missing[model]:
                    table.add(name, f"not run: {missing[model][name]}", *([None] * (len(COLUMNS) - 2)))
                    continue
                quality = model_level.whole(agreement, model, length, name)
                assert quality is not None
                transient, step = found["transient_bytes"].get(name), found["step_ms"].get(name)
                held = found["cache_bytes"].get(name)
                table.add(
                    name,
                    sum(quality["divergence"]) / len(quality["divergence"]),
                    f"{sum(quality['same_first']) / len(quality['same_first']):.1%}",
                    _retention(outcomes, model, name),
                    None if step is None else step / base,
                    step,
                    None if held is None else held / MB,
                    None if transient is None else transient / MB,
                )
            result.series[f"{model} {length}"] = found
    _presses(result, options)
    result.settings["impl"] = options.impl
    result.settings["seconds of measuring costs"] = round(costs.seconds)
    result.notes += NOTES
    for journal in (agreement, answers, costs):
        journal.close()
    return result


def timed_lengths(model: str, options: argparse.Namespace) -> list[int]:
    """The longest context of the model level within `SHORT_TOKENS`, and the longest of all, if it is another one."""
    found = context_lengths(model, options.quick, options.longest)
    return sorted({*[n for n in found if n <= SHORT_TOKENS][-1:], *found[-1:]})


NOTES = [
    f"Timed at the longest context of the model level within {SHORT_TOKENS:,} tokens, and at its longest of all; every "
    "system that the model level measures there. KL and top-1 agreement are of that context.",
    "Retention: right of asked, over all questions of the task level that full attention answers, at all lengths: the "
    "same in every table of a model.",
    "Decode time: median of steps in which all systems take turns in one process, each from its own copy of the "
    "context. Nothing here has a slow link between device and memory: what that costs a cache is not shown.",
    "cache MB: keys, values and index as stored, all tiers together. transient MB: how far the process rises above "
    "what it held while it decodes; a dash where the OS cannot tell.",
]


def _retention(outcomes: list[Outcome], model: str, name: str) -> str | None:
    share = kept([o for o in outcomes if o.model == model], name)
    return None if share is None else f"{share[0] / share[1]:.0%} ({share[0]}/{share[1]})"


def _presses(result: Result, options: argparse.Namespace) -> None:
    path = options.out / f"{RESULT}.json"
    if not path.exists():
        result.notes.append("kvpress: not run here; `nox -s kvpress` runs its presses that can decode.")
        return
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for table in found["tables"]:
        result.tables.append(Table(f"kvpress: {table['title']}", table["columns"], table["rows"]))
    result.notes.append(
        f"kvpress: measured {found['head']['date']}, commit {found['head']['commit']}, by `nox -s kvpress`."
    )


def draw(result: Result) -> Callable[[Figure], None]:
    """Return the painter: KL against the size of the cache, a panel for each model and context."""

    def paint(figure: Figure) -> None:
        shown = [table for table in result.tables if tuple(table.columns) == COLUMNS]
        figure.set_size_inches(6 * len(shown), 4.8)
        panels = figure.subplots(1, len(shown), squeeze=False)[0]
        for axes, table in zip(panels, shown, strict=True):
            for row in table.rows:
                name, kl, size = row[0], row[1], row[6]
                if name != FULL and isinstance(kl, float) and isinstance(size, float):
                    axes.scatter(size, kl, label=name, s=60)
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_title(table.title.split(", hot")[0], fontsize=10)
            axes.set_xlabel("cache, MB")
            axes.grid(alpha=0.3, which="both")
            axes.legend(fontsize=8)
        panels[0].set_ylabel("KL from full attention (nats)")

    return paint
