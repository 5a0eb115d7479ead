"""Tables and targets of the long regime, a group for each document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.models import MODELS

from .documents import EXACT_TOKENS
from .measure import KINDS
from .zoo import DOUBLED

if TYPE_CHECKING:
    from benchmarks.report import Cell, Result

    from .plan import Plan

NAMES = {"kjv": "King James", "code": "code"}


def title(plan: Plan) -> str:
    """Name a document as tables do."""
    document = plan.document
    text = "the whole King James text"
    if document.tokens is not None:
        text = f"{document.tokens:,} tokens of {NAMES[document.text]}"
    return f"{MODELS[document.model].title}, {text}"


def percent(share: float) -> str:
    """Show a share as a heading."""
    return f"{100 * share:.2g} %"


def headings(plan: Plan, record: dict[str, Any]) -> list[str]:
    """Name the numbers of candidates."""
    shares = [percent(count / record["cold"]) for count in record["candidates"]]
    if plan.document.exact:
        return shares
    return [f"{count:,} ({share})" for count, share in zip(record["candidates"], shares, strict=True)]


def both(found: dict[str, Any], figure: str, digits: int = 3) -> Cell:
    """Show a figure of text and of questions."""
    values = [found[kind].get(figure) for kind in KINDS]
    return " / ".join("-" if value is None else f"{value:.{digits}f}" for value in values)


FIGURES = (
    ("top4", "recall of the heaviest 4", 3),
    ("top64", "recall of the heaviest 64", 3),
    ("of_exact", "cold mass of the selected, beside the exact top R's", 3),
    ("error", "output error, mean", 4),
    ("error_p90", "output error, p90", 3),
)


def add_document(result: Result, plan: Plan, record: dict[str, Any]) -> None:
    """Add the tables of one document."""
    columns, indices = headings(plan, record), record["indices"]
    asked = ", ".join(f"{count} queries of {kind}" for kind, count in record["queries"].items())
    name = f"{title(plan)}: {record['cold']:,} cold tokens, {record['heads']} KV heads, {asked}"
    for figure, what, digits in FIGURES:
        table = result.table(f"{name}: {what}", "index", "bytes a token", *columns)
        for index, measured in indices.items():
            if figure in measured["found"][0]["text"]:
                shown = (both(found, figure, digits) for found in measured["found"])
                table.add(index, measured["index_bytes"], *shown)
    for task, what in ((None, "fact"), ("needle", "single needle")):
        heading = f"{name}: pairs of {what} and query head that has it among its heaviest 4"
        table = result.table(heading, "index", *columns)
        for index in indices:
            shown = ("{} of {}".format(*pairs(record, index, i, task)) for i in range(len(columns)))
            table.add(index, *shown)
    found = indices[DOUBLED.name]["found"]
    table = result.table(f"{name}: heads, layers and queries whose candidates are doubled (SPEC 4.9)", "", *columns)
    table.add("share", *(both(f, "doubled") for f in found))
    table.add("with R = a quarter of the candidates, as by default", *(both(f, "doubled_at_default") for f in found))
    counts = zip(record["candidates"], found, strict=True)
    table.add("candidates, mean", *(round(count * (1 + f["doubled"])) for count, f in counts))


def pairs(record: dict[str, Any], index: str, at: int, task: str | None = None) -> tuple[int, int]:
    """Count pairs of a fact of a task, or of any, and a query head: kept, and in all."""
    kept = record["indices"][index]["found"][at]["pairs"]
    chosen = [pair for name, pair in zip(record["facts"], kept, strict=True) if task in (None, name)]
    return sum(pair[0] for pair in chosen), sum(pair[1] for pair in chosen)


RECALL_MISSED = {0.06: 0.03, 0.016: 0.05, 0.008: 0.1}
"""Share of candidates -> share of the heaviest 4 that may be missed."""

CAPTURED_MISSED = 0.1
"""Share of the mass of the exact top R that may be missed, down to the least share that `RECALL_MISSED` names."""

FACTS_MISSED = 0.05
"""Share of the pairs of needle and head that may be missed with the default's candidates, or twice as many."""


def add_targets(result: Result, plan: Plan, record: dict[str, Any]) -> None:
    """Add what the index is to reach with doubling, the worse of text and questions."""
    counts = record["candidates"]
    found = dict(zip(counts, record["indices"][DOUBLED.name]["found"], strict=True))
    if not plan.document.exact:
        for count in (4096, 8192):
            kept, of = pairs(record, DOUBLED.name, counts.index(count), "needle")
            missed = 1 - kept / of if of else None
            name = f"{title(plan)}: needle and query head missed, of {of}, {count:,} candidates"
            result.target(name, FACTS_MISSED, missed)
    for share, limit in RECALL_MISSED.items():
        count = min(found, key=lambda b: abs(b / record["cold"] - share))
        if abs(count / record["cold"] / share - 1) > 0.1:
            continue  # longer documents and a quick run have other numbers of candidates
        for figure, what, most in (
            ("top4", "heaviest 4", limit),
            ("of_exact", "mass of the exact top R", CAPTURED_MISSED),
        ):
            values = [found[count][kind][figure] for kind in KINDS]
            missed = max((1 - value for value in values if value is not None), default=None)
            result.target(f"{title(plan)}: {what} missed at {percent(share)}", most, missed)


NOTES = (
    "Cells with two numbers: queries of the text's last 64 positions / of the last token of each question that the "
    f"model answers with full attention (of every question beyond {EXACT_TOKENS:,} tokens, or where it answers none). "
    "Shares are candidates, the tokens whose exact keys are read, of cold tokens. Heaviest: by softmax mass summed "
    "over the query heads of a KV head. Of the candidates, R = min(1,024, half of them) are selected by exact scores; "
    "the exact top R is what the same rule selects of all cold tokens.",
    "Bytes a token: codes and all tables that they need, one KV head. The original's rule and Quest rank pages for "
    "each query head; the union of the heads' choices is cut to the candidates. A page of 512 tokens becomes cold as "
    "a whole.",
    "Output error: norm of the difference from full attention's output, relative to it, a query head, with a "
    "pseudo-token for each page of 512, its mass from estimates where no exact logit is known.",
    "Keys of a question's own tokens are not in a capture: outputs of questions are of attention to the document. "
    f"Documents beyond {EXACT_TOKENS:,} tokens are read by KIV's retrieval, for exact attention would take hours.",
    "Targets are with doubling, the worse of text and questions; rivals read as many candidates, never twice as many.",
)
