"""The long regime: what each index finds where candidates are few of many, beside its bytes, on real models.

Captures are made on first use: minutes a document, the whole book an hour or two.
"""

from __future__ import annotations

import argparse
import copy
import platform
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.report import Result

from ..journal import Journal, open_journal
from .capture import Capture, load_capture
from .measure import KINDS, measured
from .picture import paint
from .plan import HOT_TOKENS, Plan, plans
from .tables import add_costs, add_document, notes, title
from .targets import add_targets
from .widening import widened
from .widening_tables import add_widening
from .zoo import NEW, TODAY, zoo

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def asked(plan: Plan, capture: Capture) -> tuple[Capture, list[int], int, slice]:
    """What a plan asks of a capture: it with the layers that are measured, budgets, hot tokens and positions."""
    capture = replace(capture, layers=capture.layers[:: plan.layers])
    return capture, plan.budgets(capture.tokens), HOT_TOKENS[plan.document.model], plan.text


def all_facts(capture: Capture, *, exact: bool) -> bool:
    """Whether questions are asked that the model does not answer: where it read by retrieval, or answers none."""
    return not exact or not any(fact.right for fact in capture.facts)


def measure(plan: Plan) -> dict[str, Any]:
    """Measure all indices on one document."""
    exact = plan.document.exact
    capture, *rest = asked(plan, load_capture(plan.document))
    indices = zoo(capture.width, large=not exact)
    return measured(capture, indices, *rest, all_facts=all_facts(capture, exact=exact))


def measure_widened(plan: Plan) -> dict[str, Any]:
    """Measure KIV's index with widening on one document."""
    capture, *rest = asked(plan, load_capture(plan.document))
    return widened(capture, *rest, all_facts=all_facts(capture, exact=plan.document.exact))


SHOWING = ("part", "picture", "plan", "tables", "targets", "widening_tables")
RETENTION = ("retention", "retention_part", "retention_plan")
"""Modules of this folder that change no figure; what the plan decides is in the keys of the records."""


def journal(options: argparse.Namespace, part: str = "long") -> Journal:
    """Open the journal of this part, whose figures depend on this folder's code alone.

    What is known of widening has a journal of its own, "long-widened": with another rule only that is measured anew.
    """
    files = [path for path in sorted(Path(__file__).parent.glob("*.py")) if path.stem not in SHOWING + RETENTION]
    if part == "long":
        files = [path for path in files if path.stem != "widening"]
    return open_journal(options, part, files)


def brief(record: dict[str, Any]) -> dict[str, Any]:
    """A record with recall by head for KIV's own indices alone: the others' would be most of the file."""
    made = copy.deepcopy(record)
    for name, of_index in made["indices"].items():
        for found in of_index["found"]:
            for kind in KINDS:
                if name not in (TODAY.name, NEW.name):
                    del found[kind]["top4_of_heads"]
    return made


def run(options: argparse.Namespace) -> Result:
    """Measure whatever the journal lacks, and make the tables."""
    planned = plans(options)
    kept, kept_widened = journal(options), journal(options, "long-widened")
    records: dict[str, dict[str, Any]] = {}
    for plan in planned:
        record = kept.measured(plan.key, lambda p=plan: measure(p))
        records[plan.document.name] = record | {
            "widened": kept_widened.measured(plan.key, lambda p=plan: measure_widened(p))
        }
    kept.close()
    kept_widened.close()
    result = Result(
        "fidelity_long",
        "The long regime: what an index finds where candidates are few of many",
        {
            "documents": ", ".join(title(plan) for plan in planned),
            "sources of the code": f"Python {platform.python_version()}",
            "minutes of measuring": round(sum(record["seconds"] for record in records.values()) / 60),
        },
    )
    for plan in planned:
        record = records[plan.document.name]
        add_targets(result, plan, record)
        add_widening(result, plan, record)
        add_document(result, plan, record)
        result.series[plan.document.name] = brief(record)
    add_costs(result)
    result.notes += notes()
    return result


def draw(result: Result) -> Callable[[Figure], None]:
    """Return the painter of the picture."""
    return partial(paint, series=result.series)
