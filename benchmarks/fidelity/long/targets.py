"""Targets of the long regime, on KIV's index with widening."""

from __future__ import annotations

from typing import Any

from benchmarks.report import Result

from .measure import KINDS
from .plan import Plan
from .tables import percent, title
from .widening_tables import pairs

RECALL_MISSED = {0.06: 0.03, 0.016: 0.05, 0.008: 0.1}
"""Share of candidates -> share of the heaviest 4 that may be missed."""

CAPTURED_MISSED = 0.1
"""Share of the mass of the exact top R that may be missed, down to the least share that `RECALL_MISSED` names."""

FACTS_MISSED = 0.05
"""Share of the pairs of needle and head that may be missed with the default's candidates, or twice as many."""


def add_targets(result: Result, plan: Plan, record: dict[str, Any]) -> None:
    """What the new index was to reach with widening, the worse of text and questions."""
    budgets = record["widened"]["budgets"]
    found = dict(zip(budgets, record["widened"]["found"], strict=True))
    if not plan.document.exact:
        for budget in (4096, 8192):
            kept, of = pairs(record, budgets.index(budget), "needle")
            missed = 1 - kept / of if of else None
            name = f"{title(plan)}: needle and query head missed, of {of}, {budget:,} candidates"
            result.target(name, FACTS_MISSED, missed)
    for share, limit in RECALL_MISSED.items():
        budget = min(found, key=lambda b: abs(b / record["cold"] - share))
        if abs(budget / record["cold"] / share - 1) > 0.1:
            continue  # longer documents and a quick run have other budgets
        for figure, what, most in (
            ("top4", "heaviest 4", limit),
            ("of_exact", "mass of the exact top R", CAPTURED_MISSED),
        ):
            values = [found[budget][kind][figure] for kind in KINDS]
            missed = max((1 - value for value in values if value is not None), default=None)
            result.target(f"{title(plan)}: {what} missed at {percent(share)}", most, missed)
