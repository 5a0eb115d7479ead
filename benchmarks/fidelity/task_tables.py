"""Tables and heat map of the task level."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from benchmarks.models import MODELS
from benchmarks.report import Result

from . import task_level
from .plan import HOT_TOKENS, TRAINED_TOKENS
from .systems import FULL, systems
from .task_level import Outcome, kept

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def run(options: argparse.Namespace) -> Result:
    """Ask the models everything and make the tables."""
    journal, outcomes, missing = task_level.measure(options)
    result = Result(
        "fidelity_tasks",
        "Task level: what a model finds through KIV, of what it finds with full attention",
        {"seed": options.seed, "impl": options.impl, "R": 256, "seconds of measuring": round(journal.seconds)},
    )
    journal.close()
    for model in options.models:
        names = [system.name for system in systems(model, options.impl)]
        _table(result, model, names, [outcome for outcome in outcomes if outcome.model == model])
        result.notes += [f"{MODELS[model].title}, {name}: not run: {why}" for name, why in missing[model].items()]
        result.notes.append(f"{MODELS[model].title} was trained to {TRAINED_TOKENS[model]:,} tokens.")
    result.series["outcomes"] = [
        {"model": o.model, "length": o.length, "task": o.question.task, "depth": o.question.depth, "right": o.right}
        for o in outcomes
    ]
    result.notes.append(" ".join((task_level.__doc__ or "").split("\n\n")[1].split()))
    result.notes.append("Cells: right of asked; a dash where full attention answered none, or the system did not run.")
    return result


def _table(result: Result, model: str, names: Sequence[str], outcomes: Sequence[Outcome]) -> None:
    rivals = [name for name in names if name != FULL]
    title = f"{MODELS[model].title}: hot {HOT_TOKENS[model]}"
    table = result.table(
        title, "task", "tokens", "right with full attention", *(f"retention: {name}" for name in rivals)
    )

    def add(task: str, length: str, here: Sequence[Outcome]) -> None:
        shares = [kept(here, name) for name in rivals]
        shown = [None if share is None else f"{share[0] / share[1]:.0%} ({share[0]}/{share[1]})" for share in shares]
        table.add(task, length, f"{sum(o.right[FULL] for o in here)} of {len(here)}", *shown)

    for task in dict.fromkeys(o.question.task for o in outcomes):
        for length in sorted({o.length for o in outcomes if o.question.task == task}):
            here = [o for o in outcomes if o.question.task == task and o.length == length]
            add(task, f"{length:,}", here)
    if outcomes:
        add("all", "all", outcomes)


def draw(result: Result) -> Callable[[Figure], None]:
    """Return the painter: a heat map of needles for each model, depth by length, retention by colour."""

    def paint(figure: Figure) -> None:
        models = list(dict.fromkeys(o["model"] for o in result.series["outcomes"]))
        panels = figure.subplots(1, len(models), squeeze=False)[0]
        for axes, model in zip(panels, models, strict=True):
            found = [o for o in result.series["outcomes"] if o["model"] == model and o["task"] == "needle"]
            _heat(axes, found)
            axes.set_title(f"{MODELS[model].title}: needles", fontsize=9)
        figure.suptitle("Needles kept by KIV, of those found with full attention; grey: none found", fontsize=9)

    return paint


def _heat(axes: Axes, found: Sequence[dict[str, object]]) -> None:
    lengths = sorted({o["length"] for o in found})  # pyright: ignore[reportArgumentType]
    depths = sorted({o["depth"] for o in found})  # pyright: ignore[reportArgumentType]
    shares: list[list[float]] = []
    for row, depth in enumerate(depths):
        shares.append([])
        for column, length in enumerate(lengths):
            here = [o["right"] for o in found if o["depth"] == depth and o["length"] == length]
            asked = [right["KIV"] for right in here if right[FULL]]  # pyright: ignore[reportIndexIssue]
            shares[-1].append(sum(asked) / len(asked) if asked else float("nan"))
            axes.text(column, row, f"{sum(asked)}/{len(asked)}", ha="center", va="center", fontsize=7)
    axes.set_facecolor("#bbbbbb")
    axes.imshow(shares, cmap="RdYlGn", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
    axes.set_xlabel("tokens")
    axes.set_ylabel("depth")
