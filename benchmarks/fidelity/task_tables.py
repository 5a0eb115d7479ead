"""Tables and targets of the task level."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kiv_hf import KIVConfig

from benchmarks.models import MODELS
from benchmarks.report import Result

from . import heat, task_level
from .plan import HOT_TOKENS, LENGTHS, RIVAL_TOKENS, TRAINED_TOKENS
from .systems import FULL, systems
from .task_level import Outcome, kept

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def run(options: argparse.Namespace) -> Result:
    """Ask the models everything and make the tables."""
    journal, outcomes, missing = task_level.measure(options)
    result = Result(
        "fidelity_tasks",
        "Task level: what a model finds through KIV, of what it finds with full attention",
        {
            "seed": options.seed,
            "impl": options.impl,
            "R": KIVConfig().retrieve_tokens,
            "seconds of measuring": round(journal.seconds),
        },
    )
    journal.close()
    for model in options.models:
        names = [system.name for system in systems(model, options.impl)]
        mine = [outcome for outcome in outcomes if outcome.model == model]
        _targets(result, model, mine)
        _table(result, model, names, mine)
        result.notes += [f"{MODELS[model].title}, {name}: not run: {why}" for name, why in missing[model].items()]
        result.notes.append(f"{MODELS[model].title} was trained to {TRAINED_TOKENS[model]:,} tokens.")
    result.series["outcomes"] = [
        {"model": o.model, "length": o.length, "task": o.question.task, "depth": o.question.depth, "right": o.right}
        for o in outcomes
    ]
    result.notes.append(" ".join((task_level.__doc__ or "").split("\n\n")[1].split()))
    result.notes += NOTES
    if options.longest is not None:
        beyond = [f"{n:,} ({MODELS[m].title})" for m in options.models for n in LENGTHS[m] if n > options.longest]
        result.notes.append(f"Left out of this run: documents of {', '.join(beyond) or 'no other length'}.")
    return result


LOST = (
    ("single needles", ("needle",), 1.0),
    ("phonebook entries", ("phonebook",), 3.0),
    ("near-duplicates", ("near-duplicate number", "near-duplicate word"), 3.0),
)
"""Targets of retention: name, tasks, percent that may be lost."""

NOTES = [
    "Cells: right of asked; a dash where full attention answered none, or the system did not run or was not asked.",
    "The models are small: of phonebooks, near-duplicates and counts they find little with full attention, so the "
    "targets of these tasks rest on few questions, whose number is in brackets.",
    "Left out to save time: caches that are dearer to run are not asked about documents beyond "
    + ", ".join(f"{RIVAL_TOKENS[model]:,} tokens ({MODELS[model].title})" for model in RIVAL_TOKENS)
    + "; one document of each length, so one needle for each depth and length, its phrasing another at each.",
    "In documents of at most as many cold tokens as there are candidates, every cold token is one.",
    "Two hops are asked for one after the other, the first one's answer told before the second is asked for. In "
    "aggregation the rarer animal was seen last.",
]


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


def _targets(result: Result, model: str, outcomes: Sequence[Outcome]) -> None:
    """Shares lost by KIV of what full attention finds, and what it is behind in aggregation, in percent."""
    title = MODELS[model].title
    for name, tasks, limit in LOST:
        share = kept([o for o in outcomes if o.question.task in tasks], "KIV")
        lost = None if share is None else 100 * (1 - share[0] / share[1])
        count = "" if share is None else f" ({share[1]} found)"
        result.target(f"{title}: {name} lost by KIV, of those that full attention finds{count}", limit, lost, "%")
    asked = [o.right for o in outcomes if o.question.task == "aggregation"]
    behind = 100 * sum(r[FULL] - r["KIV"] for r in asked) / len(asked) if asked else None
    result.target(f"{title}: aggregation, points behind full attention ({len(asked)} asked)", 2.0, behind)


def draw(result: Result) -> Callable[[Figure], None]:
    """Return the painter of the picture."""
    return heat.painter(result.series["outcomes"])
