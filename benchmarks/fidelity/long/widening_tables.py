"""Tables of KIV's index with widening."""

from __future__ import annotations

from typing import Any

from benchmarks.report import Result

from .plan import Plan
from .tables import both, headings, title
from .zoo import NEW


def add_widening(result: Result, plan: Plan, record: dict[str, Any]) -> None:
    """Table of KIV's index with widening (SPEC 4.9), and of needles by depth."""
    columns, found = headings(plan, record), record["widened"]["found"]
    table = result.table(f"{title(plan)}: {NEW.name}, candidates doubled where SPEC 4.9 says so", "figure", *columns)
    table.add("heads, layers and queries that are widened", *(both(f["widened"], None) for f in found))
    shares = (both(f["widened_at_default"], None) for f in found)
    table.add("the same with R = a quarter of the candidates, as by default", *shares)
    means = [_widened_share(record, i) for i in range(len(found))]
    budgets = record["widened"]["budgets"]
    table.add("candidates, mean", *(round(b * (1 + mean)) for b, mean in zip(budgets, means, strict=True)))
    for figure, what, digits in (
        ("top4", "recall of the heaviest 4", 3),
        ("top64", "recall of the heaviest 64", 3),
        ("of_exact", "cold mass of the selected, beside the exact top R's", 3),
        ("captured", "cold mass of the selected", 3),
        ("error", "output error, mean", 4),
        ("error_p90", "output error, p90", 3),
    ):
        table.add(what, *(both(f, figure, digits) for f in found))
    worst = [max(zip(f["widened"]["of_heads"], record["widened"]["cells"], strict=True)) for f in found]
    table.add("widened most", *(f"layer {layer}, head {head}: {share:.3f}" for share, (layer, head) in worst))
    table.add("pairs of fact and query head", *("{} of {}".format(*pairs(record, i)) for i in range(len(found))))
    shown = ["{} of {}".format(*pairs(record, i, "needle")) for i in range(len(found))]
    table.add("pairs of single needle and query head", *shown)
    depths = [(i, depth) for i, (task, depth) in enumerate(record["widened"]["facts"]) if task == "needle"]
    if depths:
        table = result.table(f"{title(plan)}: the same, pairs of each single needle", "depth", *columns)
        for i, depth in sorted(depths, key=lambda pair: pair[1]):
            table.add(f"{depth:.3f}", *("{} of {}".format(*f["pairs"][i]) for f in found))


def _widened_share(record: dict[str, Any], at: int) -> float:
    shares = record["widened"]["found"][at]["widened"]["of_heads"]
    return sum(shares) / len(shares)


def pairs(record: dict[str, Any], at: int, task: str | None = None) -> tuple[int, int]:
    """Pairs of a fact of a task, or of any, and a query head: kept, and in all."""
    facts, kept = record["widened"]["facts"], record["widened"]["found"][at]["pairs"]
    chosen = [pair for (name, _), pair in zip(facts, kept, strict=True) if task in (None, name)]
    return sum(pair[0] for pair in chosen), sum(pair[1] for pair in chosen)
