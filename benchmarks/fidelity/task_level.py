"""Task level: what a model finds through KIV, of what it finds with full attention.

What the model cannot do with full attention is no cache's failure. So the figure is retention: the share right through
a cache of the questions that full attention answers rightly. Questions go through the cache token by token.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.models import MODELS, kjv_text, load_tokenizer
from benchmarks.report import Result

from .contexts import FULL, HOT_TOKENS, QUICK_TOKENS, Context, Continuation, System, systems
from .tasks import (
    Question,
    Quiz,
    counting,
    fitted,
    near_duplicates,
    needle_grid,
    phonebook,
    several_needles,
    variable_tracking,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LENGTHS = {"gemma": (8192, 16384, 32768), "smollm2": (4096, 6144, 7680)}
"""Short name of a model -> tokens of a document."""

NEEDLE_DEPTHS = tuple((i + 0.5) / 10 for i in range(10))


@dataclass(frozen=True)
class Outcome:
    """One question, and which systems answered it rightly; None where full attention failed and no other was asked."""

    model: str
    length: int
    question: Question
    right: dict[str, bool | None]


def quizzes(rng: random.Random, quick: bool) -> list[Quiz]:
    """All tasks, each to be planted in a document of its own."""
    if quick:
        return [needle_grid(rng, NEEDLE_DEPTHS[1::5])]
    return [
        needle_grid(rng, NEEDLE_DEPTHS),
        near_duplicates(rng, 32, 16),
        phonebook(rng, 120, 100, 0.3),
        Quiz(*(_joined(several_needles(rng, 4), variable_tracking(rng, 4), counting(rng, 12)))),
    ]


def _joined(*parts: Quiz) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    return tuple(p for part in parts for p in part.passages), tuple(q for part in parts for q in part.questions)


def document_ids(model: str, quiz: Quiz, length: int) -> torch.Tensor:
    """Token ids [1, about length] of natural text with the quiz planted."""
    tokenizer = load_tokenizer(model)
    lines = kjv_text()[: 6 * length].splitlines()[1:-1]

    def count(text: str) -> int:
        return len(tokenizer(text).input_ids)

    return tokenizer(fitted(lines, quiz, length, count), return_tensors="pt").input_ids


def answer(model: str, continuation: Continuation, question: Question) -> bool:
    """Let a system complete a question's prompt."""
    tokenizer = load_tokenizer(model)
    ids = tokenizer(question.prompt, return_tensors="pt", add_special_tokens=False).input_ids
    wanted = question.answer.lower()

    def settled(found: list[int]) -> bool:
        text = tokenizer.decode(found).strip().lower()
        return text.startswith(wanted) or not wanted.startswith(text)

    most = len(tokenizer(" " + question.answer, add_special_tokens=False).input_ids) + 2
    written = continuation.greedy(continuation.feed(ids)[-1], most, settled)
    return question.right(tokenizer.decode(written))


def ask(model: str, length: int, quiz: Quiz, tested: Sequence[System]) -> list[Outcome]:
    """Ask every question of a quiz; systems beside full attention only what that answers."""
    context = Context(model, document_ids(model, quiz, length))
    found: list[Outcome] = []
    for question in quiz.questions:
        right: dict[str, bool | None] = {}
        for system in tested:
            if system.name != FULL and not right[FULL]:
                right[system.name] = None
                continue
            continuation = context.open(system)
            right[system.name] = answer(model, continuation, question)
            continuation.close()
        found.append(Outcome(model, length, question, right))
    context.close()
    return found


def run(options: argparse.Namespace) -> Result:
    """Ask both models everything."""
    result = Result(
        "fidelity_tasks",
        "Task level: what a model finds through KIV, of what it finds with full attention",
        {"seed": options.seed, "impl": options.impl, "R": 256},
    )
    outcomes: list[Outcome] = []
    for model in options.models:
        tested = systems(model, options.impl)
        lengths = [n for n in LENGTHS[model] if n <= (options.longest or n)]
        for length in [QUICK_TOKENS[model]] if options.quick else lengths:
            rng = random.Random(f"{options.seed} {model} {length}")
            for quiz in quizzes(rng, options.quick):
                outcomes += ask(model, length, quiz, tested)
        _table(result, model, tested, [outcome for outcome in outcomes if outcome.model == model])
    result.series["outcomes"] = [
        {"model": o.model, "length": o.length, "task": o.question.task, "depth": o.question.depth, "right": o.right}
        for o in outcomes
    ]
    result.notes.append(" ".join((__doc__ or "").split("\n\n")[1].split()))
    return result


def retention(outcomes: Sequence[Outcome], system: str) -> float | None:
    """Share right of what full attention answers; None if that is nothing."""
    asked = [bool(o.right[system]) for o in outcomes if o.right[FULL]]
    return sum(asked) / len(asked) if asked else None


def _table(result: Result, model: str, tested: Sequence[System], outcomes: Sequence[Outcome]) -> None:
    rivals = [system.name for system in tested if system.name != FULL]
    table = result.table(
        f"{MODELS[model].title}: hot {HOT_TOKENS[model]}",
        "task",
        "tokens",
        "questions",
        "right with full attention",
        *(f"retention: {name}" for name in rivals),
    )
    for task in dict.fromkeys(o.question.task for o in outcomes):
        for length in dict.fromkeys(o.length for o in outcomes):
            here = [o for o in outcomes if o.question.task == task and o.length == length]
            kept = [retention(here, name) for name in rivals]
            shown = [None if share is None else f"{share:.0%}" for share in kept]
            table.add(task, f"{length:,}", len(here), sum(bool(o.right[FULL]) for o in here), *shown)


def draw(result: Result) -> Callable[[Figure], None]:
    """Return the painter: for each model the needles by depth and length, full attention and KIV."""

    def paint(figure: Figure) -> None:
        models = list(dict.fromkeys(o["model"] for o in result.series["outcomes"]))
        panels = figure.subplots(1, len(models), squeeze=False)[0]
        for axes, model in zip(panels, models, strict=True):
            found = [o for o in result.series["outcomes"] if o["model"] == model and o["task"] == "needle"]
            lengths = sorted({o["length"] for o in found})
            for o in found:
                kept = o["right"].get("KIV")
                colour = "#bbbbbb" if not o["right"][FULL] else "#2ca02c" if kept else "#d62728"
                axes.scatter(lengths.index(o["length"]), o["depth"], marker="s", s=160, color=colour)
            axes.set_xticks(range(len(lengths)), [f"{n:,}" for n in lengths])
            axes.invert_yaxis()
            axes.set_xlabel("tokens")
            axes.set_title(f"{MODELS[model].title}: needles", fontsize=9)
        panels[0].set_ylabel("depth")
        figure.suptitle("green: kept by KIV, red: lost by KIV, grey: not found with full attention", fontsize=8)

    return paint
