"""Task level: what a model finds through KIV and its rivals, of what it finds with full attention.

What the model cannot do with full attention is no cache's failure. So the figure is retention: the share right through
a cache of the questions that full attention answers rightly. Questions go through the cache token by token.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache

from tqdm import tqdm

from .contexts import Context, refusals
from .documents import answered, document_ids, prompt_ids
from .journal import Journal, Record, open_journal
from .plan import RIVAL_TOKENS, Document, documents
from .systems import FULL, System, systems
from .tasks import Question


@dataclass(frozen=True)
class Outcome:
    """One question, and whether a system answered it rightly; systems that were not asked are not in `right`."""

    model: str
    length: int
    question: Question
    right: dict[str, bool]


def key(document: Document, number: int, system: System) -> tuple[str, ...]:
    """Of the record of one answer."""
    return document.model, str(document.tokens), document.name, str(number), system.name


def ask(context: Context, document: Document, question: Question, system: System) -> Record:
    """Let a system answer one question."""
    continuation = context.open(system)
    logits = continuation.read(prompt_ids(document.model, question))
    right = answered(document.model, question, lambda most, settled: continuation.greedy(logits, most, settled))
    continuation.close()
    return {"task": question.task, "right": right}


AGGREGATE = ("aggregation", "counting")
"""Tasks whose figure is the share right beside full attention's: KIV is asked these whatever full attention answers."""


def wanted(document: Document, question: Question, system: System, full_right: bool) -> bool:
    """Whether a system is asked a question."""
    if system.kind == "full" or (system.kind == "kiv" and question.task in AGGREGATE):
        return True
    cheap = system.kind in ("kiv", "original", "window")
    return full_right and (cheap or document.tokens <= RIVAL_TOKENS[document.model])


def measure(options: argparse.Namespace) -> tuple[Journal, list[Outcome], dict[str, dict[str, str]]]:
    """Ask whatever the journal lacks."""
    journal = open_journal(options, "tasks")
    missing = {model: refusals(model, systems(model, options.impl)) for model in options.models}
    planned = [d for m in options.models for d in documents(m, options.seed, options.quick, options.longest)]
    outcomes: list[Outcome] = []
    with tqdm(total=sum(len(d.quiz.questions) for d in planned), desc="task level", unit="question") as bar:
        for document in planned:
            bar.set_postfix_str(f"{document.model} {document.tokens:,} {document.name}")
            tested = [s for s in systems(document.model, options.impl) if s.name not in missing[document.model]]
            for outcome in _outcomes(journal, document, tested):
                outcomes.append(outcome)
                bar.update()
    return journal, outcomes, missing


def _outcomes(journal: Journal, document: Document, tested: Sequence[System]) -> Iterator[Outcome]:
    assert tested[0].name == FULL
    with ExitStack() as stack:

        @cache
        def context() -> Context:  # prefilled when the first question is not in the journal
            made = Context(document.model, document_ids(document))
            stack.callback(made.close)
            return made

        for number, question in enumerate(document.quiz.questions):
            right: dict[str, bool] = {}
            for system in tested:
                if wanted(document, question, system, right.get(FULL, False)):
                    record = journal.measured(
                        key(document, number, system),
                        lambda q=question, s=system: ask(context(), document, q, s),
                    )
                    right[system.name] = record["right"]
            yield Outcome(document.model, document.tokens, question, right)


def kept(outcomes: Sequence[Outcome], system: str) -> tuple[int, int] | None:
    """Right, and asked, of what full attention answers; None if that is nothing or the system was not run."""
    asked = [outcome.right[system] for outcome in outcomes if outcome.right[FULL] and system in outcome.right]
    return (sum(asked), len(asked)) if asked else None
