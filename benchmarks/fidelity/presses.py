"""Presses of kvpress that can decode, on the same prompts: a command of its own, for they need an older transformers.

    nox -s kvpress                                    # or, where kvpress is installed:
    python -m benchmarks.fidelity.presses --quick

They keep as many tokens as KIV attends exactly (sinks, hot and retrieved). Full attention in the same process, on the
same version of transformers, is what they are compared with.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from benchmarks.models import MODELS
from benchmarks.report import Result
from benchmarks.timing import interleave, median_ms

from .agreement import Agreement
from .documents import TEXTS, answered, document_ids, haystack_tokens, prompt_ids
from .journal import Journal, Record, open_journal
from .plan import GREEDY_TOKENS, SCORED_TOKENS, Document, context_lengths, documents
from .pressed import FULL, INTERVAL_TOKENS, KEPT_TOKENS, MODEL, PRESSES, PressedContext
from .tasks import Question

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULT = "fidelity_kvpress"


def _score(journal: Journal, bar: tqdm[Any], length: int, text: str, quick: bool) -> None:
    scored, greedy = (8, 4) if quick else (SCORED_TOKENS, GREEDY_TOKENS)
    keys = {name: ("model", str(length), text, name) for name in (FULL, *PRESSES)}
    if journal.misses([*keys.values(), ("costs", str(length), text)]):
        ids = haystack_tokens(MODEL, text, length + scored)
        context = PressedContext(ids[:, :length])
        agreement = Agreement(context.open(FULL), ids[:, length:], greedy)
        for name, key in keys.items():
            journal.measured(key, lambda name=name: agreement.record(context.open(name)))
        journal.measured(("costs", str(length), text), lambda: _costs(context, quick))
    bar.update()


def _costs(context: PressedContext, quick: bool) -> Record:
    # Hooks are on the model, and all take turns on it: so a step is timed without the press, which would add its own.
    opened = {name: context.open(name, pressing=False) for name in (FULL, *PRESSES)}
    token = context.ids[:, -1:]
    steps = {name: (lambda _, c=continuation: c.read(token)) for name, continuation in opened.items()}
    taken = interleave(steps, 3 if quick else 24, 1 if quick else 4)
    return {
        "step_ms": {name: median_ms(times) for name, times in taken.items()},
        "cache_bytes": {name: context.bytes(name) for name in opened},
    }


def _ask(journal: Journal, bar: tqdm[Any], document: Document) -> None:
    @cache
    def context() -> PressedContext:  # read when the first question is not in the journal
        return PressedContext(document_ids(document))

    def answer(name: str, question: Question) -> Record:
        continuation = context().open(name)
        logits = continuation.read(prompt_ids(MODEL, question))
        right = answered(MODEL, question, lambda most, settled: continuation.greedy(logits, most, settled))
        continuation.close()
        return {"right": right}

    for number, question in enumerate(document.quiz.questions):
        if journal.measured(_key(document, number, FULL), lambda q=question: answer(FULL, q))["right"]:
            for name in PRESSES:
                journal.measured(_key(document, number, name), lambda n=name, q=question: answer(n, q))
        bar.update()


def _key(document: Document, number: int, name: str) -> tuple[str, ...]:
    return "tasks", document.name, str(document.tokens), str(number), name


def run(options: argparse.Namespace) -> Result:
    """Measure what the journal lacks and make the tables."""
    journal = open_journal(options, "kvpress")
    lengths = context_lengths(MODEL, options.quick, None)[:1]  # each press needs a prefill of its own
    texts = list(TEXTS)[:1]
    asked = list(documents(MODEL, options.seed, options.quick, min(lengths)))
    asked = [d for d in asked if d.name != "phonebook"]
    with tqdm(total=len(lengths) * len(texts) + sum(len(d.quiz.questions) for d in asked), desc="kvpress") as bar:
        for length in lengths:
            for text in texts:
                _score(journal, bar, length, text, options.quick)
        for document in asked:
            _ask(journal, bar, document)
    settings = {"kept tokens": KEPT_TOKENS, "interval": INTERVAL_TOKENS, "seconds of measuring": round(journal.seconds)}
    result = Result(RESULT, "Presses of kvpress that can decode, beside full attention", settings)
    for length in lengths:
        columns = ("press", "KL, mean (nats)", "top-1 agreement", "decode time ÷ DynamicCache", "cache MB")
        table = result.table(f"{MODELS[MODEL].title}: {length:,} tokens", *columns)
        for name in (FULL, *PRESSES):
            found = [journal[("model", str(length), text, name)] for text in texts]
            cost = journal[("costs", str(length), texts[0])]
            kl = [x for record in found for x in record["divergence"]]
            same = [x for record in found for x in record["same_first"]]
            ratio = cost["step_ms"][name] / cost["step_ms"][FULL]
            table.add(name, sum(kl) / len(kl), f"{sum(same) / len(same):.1%}", ratio, cost["cache_bytes"][name] / 1e6)
    table = result.table("Right of asked, of what full attention answers", "task", "tokens", "asked", *PRESSES)
    for document in asked:
        for task in dict.fromkeys(q.task for q in document.quiz.questions):
            table.add(task, f"{document.tokens:,}", *_kept(journal, document, task))
    result.notes += [
        " ".join((__doc__ or "").split("\n\n")[2].split()),
        "Left out to save time: the second text, longer contexts, and the phonebook.",
        f"{MODELS['gemma'].title}: not run: kvpress presses the sliding layers of Gemma3ForCausalLM too.",
        "Decode time is that of a step between two compressions.",
    ]
    result.series["right"] = {
        name: sum(r["right"] for k, r in journal.items() if k[0] == "tasks" and k[-1] == name)
        for name in (FULL, *PRESSES)
    }
    journal.close()
    return result


def _kept(journal: Journal, document: Document, task: str) -> list[str | int | None]:
    found: dict[str, list[bool]] = {name: [] for name in (FULL, *PRESSES)}
    for number, question in enumerate(document.quiz.questions):
        for name in found:
            key = _key(document, number, name)
            if question.task == task and key in journal:
                found[name].append(journal[key]["right"])
    asked = sum(found[FULL])
    return [f"{asked} of {len(found[FULL])}", *(f"{sum(found[n])}/{asked}" if asked else None for n in PRESSES)]


def draw(result: Result) -> Callable[[Figure], None]:
    """Return the painter: questions answered by each press."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        right: dict[str, int] = result.series["right"]
        axes.barh(list(right), list(right.values()))
        axes.set_xlabel("questions answered rightly, of those that full attention answers")

    return paint


def main() -> None:
    """Run the command."""
    made = argparse.ArgumentParser(prog="benchmarks.fidelity.presses", description=__doc__)
    made.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--threads", type=int, default=os.cpu_count())
    made.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "results")
    options = made.parse_args()
    options.impl = "kvpress"
    torch.set_num_threads(options.threads)
    result = run(options)
    result.write(options.out, draw(result))
    print(options.out / f"{result.name}.md")


if __name__ == "__main__":
    main()
