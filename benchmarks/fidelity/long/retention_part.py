"""Retention in the long regime: what is asked, its tables, targets and picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.models import MODELS
from benchmarks.report import Result

from ..contexts import FULL
from ..journal import open_journal
from .documents import LongDocument, Text
from .retention import Outcome, outcomes, share_name

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from matplotlib.figure import Figure

SHARES = (0.25, 0.06, 0.016, 0.008)
"""Candidates as a share of the cold tokens."""

LEAST_ANSWERED = 40
"""Questions a model that full attention is to answer: a series goes on until it has them."""


@dataclass(frozen=True)
class Series:
    """`least` to `most` documents alike, with other facts in other stretches of the text."""

    model: str
    text: Text
    tokens: int
    least: int
    most: int

    def document(self, number: int) -> LongDocument:
        """Return one of them."""
        return LongDocument(self.model, self.text, self.tokens, number)

    def wanted(self, number: int, answers: int) -> bool:
        """Tell whether the document of this number is asked when full attention has given `answers`."""
        return number < self.least or (number < self.most and answers < LEAST_ANSWERED)


SERIES = (
    Series("smollm2", "kjv", 7600, 3, 8),
    Series("gemma", "kjv", 31000, 3, 6),
    Series("qwen", "code", 26000, 2, 5),
)

LOST = {0.25: 0.01, 0.06: 0.01, 0.016: 0.03, 0.008: 0.1}
"""Share of candidates -> share of the needles that may be lost."""

HOPS_LOST = 0.05
"""Share of two hops, and of several needles, that may be lost at 6 %."""


def planned(options: argparse.Namespace) -> tuple[tuple[Series, ...], tuple[float, ...]]:
    """Return the series that a run asks, and the shares: a small document and one share, or all that was asked for."""
    if options.quick:
        return (Series("smollm2", "kjv", 1800, 1, 1),), SHARES[:1]
    chosen = [series for series in SERIES if series.model in options.models]
    return tuple(s for s in chosen if s.tokens <= (options.longest or s.tokens)), SHARES


def run(options: argparse.Namespace) -> Result:
    """Ask the models whatever the journal lacks, and make the tables."""
    asked, shares = planned(options)
    journal = open_journal(options, "retention")
    found: dict[str, list[Outcome]] = {series.model: [] for series in asked}
    for series in asked:
        here, number = found[series.model], 0
        while series.wanted(number, sum(outcome.right[FULL] for outcome in here)):
            here += outcomes(journal, series.document(number), shares, options.impl)
            number += 1
    journal.close()
    read = dict.fromkeys(outcome.document for here in found.values() for outcome in here)
    settings = {"documents": ", ".join(read), "impl": options.impl}
    result = Result("fidelity_retention", "What is still answered where candidates are few of many", settings)
    for model, here in found.items():
        _tabulate(result, model, here, shares)
        _targets(result, model, here, shares)
        answers = sum(outcome.right[FULL] for outcome in here)
        result.series[model] = {"questions": answers, "kept": [[share, kept(here, share)[0]] for share in shares]}
        if answers < LEAST_ANSWERED:
            result.notes.append(f"{MODELS[model].title}: {answers} answers with full attention are too few.")
    result.notes += NOTES
    return result


NOTES = (
    "Cells: right through KIV, of what full attention answers; columns: candidates, as a share of the cold tokens; R = "
    "min(1,024, half of the candidates). The text was read with full attention, the question goes through KIV a token "
    "at a time.",
    "Widened: of the attends of one layer and KV head, a token each, the share that took twice the candidates "
    "(SPEC 4.9).",
)


def kept(found: Sequence[Outcome], share: float, *tasks: str) -> tuple[int, int]:
    """Count the right at a share of candidates, and the asked, in tasks of these names, or in all."""
    asked = [o.right[share_name(share)] for o in found if o.right[FULL] and (not tasks or o.question.task in tasks)]
    return sum(asked), len(asked)


def lost(found: Sequence[Outcome], share: float, *tasks: str) -> float | None:
    """Return the share that is lost of what full attention answers; None if that is nothing."""
    right, asked = kept(found, share, *tasks)
    return 1 - right / asked if asked else None


def widened(found: Sequence[Outcome], share: float) -> float | None:
    """Return the share of the attends that were widened; None if none retrieved."""
    name = share_name(share)
    blocks = sum(outcome.blocks.get(name, 0) for outcome in found)
    return sum(outcome.widened.get(name, 0) for outcome in found) / blocks if blocks else None


def _tabulate(result: Result, model: str, found: Sequence[Outcome], shares: Sequence[float]) -> None:
    table = result.table(MODELS[model].title, "task", "right with full attention", *map(share_name, shares))
    for task in (*dict.fromkeys(o.question.task for o in found), None):
        here = [o for o in found if task in (None, o.question.task)]
        shown = ["{} of {}".format(*kept(here, share)) for share in shares]
        table.add(task or "all", f"{sum(o.right[FULL] for o in here)} of {len(here)}", *shown)
    table.add("widened", None, *(widened(found, share) for share in shares))


def _targets(result: Result, model: str, found: Sequence[Outcome], shares: Sequence[float]) -> None:
    title = MODELS[model].title
    for share in shares:
        of = kept(found, share, "needle")[1]
        name = f"{title}: needles lost at {share_name(share)}, of {of}"
        result.target(name, LOST[share], lost(found, share, "needle"))
    if 0.06 in shares:
        of = kept(found, 0.06, "two hops", "several needles")[1]
        name = f"{title}: two hops and several needles lost at 6 %, of {of}"
        result.target(name, HOPS_LOST, lost(found, 0.06, "two hops", "several needles"))


def draw(figure: Figure, result: Result) -> None:
    """Draw the share kept against the share read, a line a model."""
    panel = figure.subplots()
    for model, found in result.series.items():
        shares, counts = zip(*found["kept"], strict=True)
        answers = [count / max(1, found["questions"]) for count in counts]
        label = f"{MODELS[model].title}, {found['questions']} questions"
        panel.plot([100 * share for share in shares], answers, "o-", label=label)
    panel.set(xscale="log", xlabel="candidates, % of the cold tokens", ylabel="answers kept", ylim=(0, 1.05))
    panel.invert_xaxis()
    panel.grid(alpha=0.3)
    panel.legend()
