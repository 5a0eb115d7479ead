"""What models still answer through KIV, of what they answer with full attention, where candidates are few of many.

Questions go through the cache a token at a time, after a document that was read with full attention.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from kiv_hf import KIVConfig
from tqdm import tqdm

from benchmarks.models import MODELS, load_tokenizer
from benchmarks.report import Result

from ..contexts import Context
from ..documents import answered, prompt_ids
from ..journal import Journal, Record, open_journal, sources
from ..systems import FULL, System, asked
from ..tasks import Question
from .documents import LongDocument
from .plan import HOT_TOKENS
from .scene import cold_tokens

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARES = (0.25, 0.06, 0.016, 0.008)
"""Candidates as a share of the cold tokens."""

DOCUMENTS = (
    *(LongDocument("smollm2", "kjv", 7600, number) for number in range(3)),
    *(LongDocument("gemma", "kjv", 31000, number) for number in range(3)),
    *(LongDocument("qwen", "code", 26000, number) for number in range(2)),
)

LOST = {0.25: 0.01, 0.06: 0.01, 0.016: 0.03, 0.008: 0.1}
"""Share of candidates -> share of the needles that may be lost."""

HOPS_LOST = 0.05
"""Share of two hops, and of several needles, that may be lost at 6 %."""


@dataclass(frozen=True)
class Outcome:
    """One question, and whether each system answered it rightly; KIV is asked what full attention answers."""

    model: str
    question: Question
    right: dict[str, bool]


def at_share(model: str, share: float, tokens: int, impl: str) -> System:
    """KIV as it is shipped but for its budgets."""
    hot = HOT_TOKENS[model]
    candidates = max(1, round(share * cold_tokens(tokens, hot)))
    selected = min(KIVConfig().retrieve_tokens or candidates, candidates)
    knobs = {"hot_tokens": hot, "candidate_tokens": candidates, "retrieve_tokens": selected}
    return System(f"{100 * share:g} %", "kiv", asked(**knobs), impl)


def ask(context: Context, model: str, question: Question, system: System) -> Record:
    """Let a system answer one question."""
    continuation = context.open(system)
    logits = continuation.read(prompt_ids(model, question))
    right = answered(model, question, lambda most, settled: continuation.greedy(logits, most, settled))
    continuation.close()
    return {"task": question.task, "right": right}


def outcomes(journal: Journal, document: LongDocument, shares: Sequence[float], impl: str) -> Iterator[Outcome]:
    """Ask whatever the journal lacks about a document."""
    with ExitStack() as stack:

        @cache
        def ids() -> torch.Tensor:
            return load_tokenizer(document.model)(document.content, return_tensors="pt").input_ids

        @cache
        def context() -> Context:  # read when the first question is not in the journal
            made = Context(document.model, ids())
            stack.callback(made.close)
            return made

        for number, question in enumerate(document.quiz.questions):
            right: dict[str, bool] = {}
            for system in (
                System(FULL, "full"),
                *(at_share(document.model, share, ids().shape[1], impl) for share in shares),
            ):
                if right.get(FULL, True):
                    key = (document.name, str(number), system.name)
                    record = journal.measured(key, lambda q=question, s=system: ask(context(), document.model, q, s))
                    right[system.name] = record["right"]
            yield Outcome(document.model, question, right)


def kept(found: Sequence[Outcome], share: float, *tasks: str) -> tuple[int, int]:
    """Right at a share of candidates, and asked, in tasks of these names, or in all."""
    name = f"{100 * share:g} %"
    asked_of = [o.right[name] for o in found if o.right[FULL] and (not tasks or o.question.task in tasks)]
    return sum(asked_of), len(asked_of)


def run(options: argparse.Namespace) -> Result:
    """Ask the models everything and make the tables."""
    planned = [d for d in DOCUMENTS if d.model in options.models and (d.tokens or 0) <= (options.longest or 2**30)]
    shares: Sequence[float] = SHARES
    if options.quick:
        planned, shares = [LongDocument("smollm2", "kjv", 1800)], (0.25,)
    here = Path(__file__)
    journal = open_journal(options, "retention", [*sources(), here, here.with_name("documents.py")])
    found: list[Outcome] = []
    with tqdm(total=sum(len(d.quiz.questions) for d in planned), desc="retention", unit="question") as bar:
        for document in planned:
            bar.set_postfix_str(document.name)
            for outcome in outcomes(journal, document, shares, options.impl):
                found.append(outcome)
                bar.update()
    journal.close()
    settings = {"documents": ", ".join(d.name for d in planned), "impl": options.impl}
    result = Result("fidelity_retention", "What is still answered where candidates are few of many", settings)
    for model in dict.fromkeys(document.model for document in planned):
        _tabulate(result, model, [outcome for outcome in found if outcome.model == model], shares)
    result.series["outcomes"] = [{"model": o.model, "task": o.question.task, "right": o.right} for o in found]
    result.notes.append(
        "Cells: right through KIV of right with full attention; columns: candidates of the cold tokens."
    )
    return result


def _tabulate(result: Result, model: str, found: Sequence[Outcome], shares: Sequence[float]) -> None:
    title = MODELS[model].title
    table = result.table(title, "task", "right with full attention", *(f"{100 * share:g} %" for share in shares))
    for task in (*dict.fromkeys(o.question.task for o in found), None):
        here = [o for o in found if task in (None, o.question.task)]
        shown = ["{} of {}".format(*kept(here, share)) for share in shares]
        table.add(task or "all", f"{sum(o.right[FULL] for o in here)} of {len(here)}", *shown)
    for share in shares:
        right, of = kept(found, share, "needle")
        result.target(f"{title}: needles lost at {100 * share:g} %", LOST[share], 1 - right / of if of else None)
    if 0.06 in shares:
        right, of = kept(found, 0.06, "two hops", "several needles")
        result.target(f"{title}: two hops and several needles lost at 6 %", HOPS_LOST, 1 - right / of if of else None)


def draw(result: Result) -> Callable[[Figure], None]:
    """Return the painter of the picture: share kept against share read, a line a model."""

    def paint(figure: Figure) -> None:
        panel = figure.subplots()
        for table in result.tables:
            shares = [float(column.removesuffix(" %")) for column in table.columns[2:]]
            counts = [str(cell).split(" of ") for cell in table.rows[-1][2:]]
            panel.plot(shares, [int(right) / max(1, int(of)) for right, of in counts], "o-", label=table.title)
        panel.set(xscale="log", xlabel="candidates, % of the cold tokens", ylabel="answers kept", ylim=(0, 1.05))
        panel.invert_xaxis()
        panel.grid(alpha=0.3)
        panel.legend()

    return paint
