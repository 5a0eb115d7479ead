"""Tables of the long regime, a group for each document."""

from __future__ import annotations

from typing import Any

from benchmarks.models import MODELS
from benchmarks.report import Cell, Result

from .cost import Cost, Shape, read_bytes
from .documents import EXACT_TOKENS
from .measure import KINDS
from .plan import Plan
from .zoo import EXACT, FOUR_BITS, NEW, TODAY, ZOO

NAMED_SHARE = 0.016
"""Share of candidates at which the worst layer and head are named."""


def title(plan: Plan) -> str:
    """A document as it is called in tables."""
    document = plan.document
    text = (
        "the whole King James text"
        if document.tokens is None
        else f"{document.tokens:,} tokens of {NAMES[document.text]}"
    )
    return f"{MODELS[document.model].title}, {text}"


NAMES = {"kjv": "King James", "code": "code"}


def percent(share: float) -> str:
    """A share as a heading."""
    return f"{100 * share:.2g} %"


def headings(plan: Plan, record: dict[str, Any]) -> list[str]:
    """What the budgets are called."""
    if not plan.document.exact:
        return [f"{budget:,} ({percent(budget / record['cold'])})" for budget in record["budgets"]]
    return [f"{percent(budget / record['cold'])}" for budget in record["budgets"]]


def both(found: dict[str, Any], figure: str | None, digits: int = 3) -> Cell:
    """A figure of text and of questions; None where there is only one."""
    values = [found[kind] if figure is None else found[kind].get(figure) for kind in KINDS]
    return " / ".join("-" if value is None else f"{value:.{digits}f}" for value in values)


def add_document(result: Result, plan: Plan, record: dict[str, Any]) -> None:
    """Tables of one document."""
    columns = headings(plan, record)
    asked = ", ".join(f"{count} queries of {kind}" for kind, count in record["queries"].items())
    name = f"{title(plan)}: {record['cold']:,} cold tokens, {len(record['cells'])} KV heads, {asked}"
    for figure, what in (
        ("top4", "recall of the heaviest 4"),
        ("top64", "recall of the heaviest 64"),
        ("of_exact", "cold mass of the selected, beside the exact top R's"),
    ):
        table = result.table(f"{name}: {what}", "index", "bytes a token", *columns)
        for index, measured in record["indices"].items():
            table.add(index, measured["index_bytes"], *(both(found, figure) for found in measured["found"]))
    table = result.table(f"{name}: output error, mean (p90)", "index", *columns)
    for index in (TODAY, NEW, EXACT):
        found = record["indices"][index.name]["found"]
        table.add(index.name, *(f"{both(f, 'error', 4)} ({both(f, 'error_p90', 3)})" for f in found))
    if "four_bits" in record:
        error = f"{record['four_bits']['error']:.4f} ({record['four_bits']['error_p90']:.3f})"
        table.add(f"{FOUR_BITS.name}, attending to all", *(error for _ in columns))
    for pairs, what in (("facts", "fact"), ("needles", "single needle")):
        of_indices = {index: [found.get(pairs) for found in m["found"]] for index, m in record["indices"].items()}
        if any(None in of_index for of_index in of_indices.values()):
            continue  # measured before needles were told apart
        heading = f"{name}: pairs of {what} and query head that has it among its heaviest 4"
        table = result.table(heading, "index", *columns)
        for index, of_index in of_indices.items():
            table.add(index, *("{} of {}".format(*pair) for pair in of_index))
    _worst(result, name, record)


def _worst(result: Result, name: str, record: dict[str, Any]) -> None:
    at = min(range(len(record["budgets"])), key=lambda i: abs(record["budgets"][i] / record["cold"] - NAMED_SHARE))
    share = percent(record["budgets"][at] / record["cold"])
    columns = ("index", "queries", "worst layer", "its recall", "worst head", "its recall")
    table = result.table(f"{name}: where the heaviest 4 are found least, at {share}", *columns)
    for index in (TODAY, NEW):
        for kind in KINDS:
            heads = record["indices"][index.name]["found"][at][kind]["top4_of_heads"]
            if None in heads:
                continue
            layers: dict[int, list[float]] = {}
            for (layer, _), recall in zip(record["cells"], heads, strict=True):
                layers.setdefault(layer, []).append(recall)
            means = {layer: sum(recalls) / len(recalls) for layer, recalls in layers.items()}
            layer = min(means, key=lambda i: means[i])
            worst, (at_layer, head) = min(zip(heads, record["cells"], strict=True))
            table.add(index.name, kind, f"{layer}", means[layer], f"layer {at_layer}, head {head}", worst)


AT_1M = Shape(512, 512, 8)
LAYERS_AT_1M, TOKENS_AT_1M = 3, 2**20
CANDIDATES, RETRIEVED = 4096, 1024


def add_costs(result: Result) -> None:
    """Costs at a million tokens of the geometry that the original KIV was published with."""
    table = result.table(
        f"Costs at 1M tokens, {LAYERS_AT_1M} layers, 1 KV head of D {AT_1M.key_width}, {AT_1M.heads} query heads; "
        f"{CANDIDATES:,} candidates, {RETRIEVED:,} selected",
        *("index", "index, MB", "of it tables", "keys and values a step, MB", "all reading a step, MB"),
        *("M multiply-adds a step", "M table reads a step"),
    )
    for index in ZOO:
        cost: Cost = index.cost(AT_1M)
        million = LAYERS_AT_1M * TOKENS_AT_1M / 1e6
        read = LAYERS_AT_1M * read_bytes(cost, AT_1M, TOKENS_AT_1M, CANDIDATES, RETRIEVED) / 1e6
        moved = read - cost.index_bytes * million
        if index is NEW:
            result.target("index at 1M tokens, 3 layers of D 512", 150, cost.index_bytes * million, "MB")
            result.target("keys and values read a step, the same", 16.5, moved, "MB")
        table.add(
            *(index.name, cost.index_bytes * million, cost.table_bytes * million, moved, read),
            *(cost.multiply_adds * million, cost.table_reads * million),
        )


def notes() -> list[str]:
    """How to read the tables."""
    return [
        "Cells with two numbers: queries of the text's last 64 positions / of the last token of each question that "
        f"the model answers with full attention (of every question beyond {EXACT_TOKENS:,} tokens, or where it "
        "answers none). Shares are candidates, the tokens whose exact keys are read, of cold tokens; each index reads "
        "as many, its last page or cluster is cut. Heaviest: by softmax mass summed over the query heads of a KV head. "
        "Of the candidates, R = min(1,024, half of them) are selected by exact scores; the exact top R is what the "
        "same rule selects of all cold tokens.",
        "Bytes a token: codes and all tables that they need, one KV head; means of values, which tails need, are not "
        "in them. The original's rule and Quest rank pages for each query head; the union of the heads' choices is cut "
        "to the candidates. A page of 512 tokens becomes cold as a whole.",
        "Output error: norm of the difference from full attention's output, relative to it, a query head. "
        f"{TODAY.name}: with the tail of candidate pages and spans that KIV had before; {NEW.name} and {EXACT.name}: "
        "a pseudo-token for each page of 512, its mass from estimates where no exact logit is known.",
        "Keys of a question's own tokens are not in a capture: outputs of questions are of attention to the document. "
        f"Documents beyond {EXACT_TOKENS:,} tokens are read by a retrieval of their own (`retrieving.py`), for exact "
        "attention would take hours.",
        f"Targets are on {NEW.name} with widening, the worse of text and questions. All other tables are without it: "
        "rivals read as many candidates.",
    ]
