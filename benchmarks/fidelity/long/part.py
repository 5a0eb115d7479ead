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
from .tables import add_costs, add_document, add_targets, notes, title
from .zoo import NEW, TODAY, zoo

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def measure(plan: Plan, capture: Capture) -> dict[str, Any]:
    """Measure one document."""
    capture = replace(capture, layers=capture.layers[:: plan.layers])
    return measured(
        capture,
        zoo(capture.width, large=not plan.document.exact),
        plan.budgets(capture.tokens),
        HOT_TOKENS[plan.document.model],
        plan.text,
        all_facts=not plan.document.exact,
    )


SHOWING = ("part", "picture", "tables")
"""Modules of this folder that change no figure."""


def journal(options: argparse.Namespace) -> Journal:
    """Open the journal of this part, whose figures depend on this folder's code alone."""
    files = [path for path in sorted(Path(__file__).parent.glob("*.py")) if path.stem not in SHOWING]
    return open_journal(options, "long", files)


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
    kept = journal(options)
    records: dict[str, dict[str, Any]] = {}
    for plan in planned:
        name = plan.document.name
        records[name] = kept.measured((name,), lambda p=plan: measure(p, load_capture(p.document)))
    kept.close()
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
        add_document(result, plan, record)
        result.series[plan.document.name] = brief(record)
    add_costs(result)
    result.notes += notes()
    return result


def draw(result: Result) -> Callable[[Figure], None]:
    """Return the painter of the picture."""
    return partial(paint, series=result.series)
