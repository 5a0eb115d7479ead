"""The long regime: what each index finds where candidates are few of many, beside its bytes, on real models.

Captures are made on first use: minutes a document, the whole book an hour or two.
"""

from __future__ import annotations

import platform
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from benchmarks.report import Result

from ..journal import open_journal
from .capture import load_capture
from .measure import measured
from .picture import points
from .plan import HOT_TOKENS, Plan, plans
from .tables import NOTES, add_document, add_targets, title

if TYPE_CHECKING:
    import argparse


def measure(plan: Plan) -> dict[str, Any]:
    """Measure all indices on one document, with every question if the model answers none or read by retrieval."""
    capture = load_capture(plan.document)
    every = not plan.document.exact or not any(fact.right for fact in capture.facts)
    counts, hot = plan.counts(capture.tokens), HOT_TOKENS[plan.document.model]
    chosen = list(capture.layers)[:: plan.layers]
    capture = replace(capture, layers={index: capture.layers[index] for index in chosen})
    return measured(capture, counts, hot, plan.text, all_facts=every)


def run(options: argparse.Namespace) -> Result:
    """Measure whatever the journal lacks, and make the tables."""
    planned = plans(options)
    journal = open_journal(options, "long")
    records = [journal.measured(plan.key, lambda p=plan: measure(p)) for plan in planned]
    journal.close()
    result = Result(
        "fidelity_long",
        "The long regime: what an index finds where candidates are few of many",
        {
            "documents": ", ".join(title(plan) for plan in planned),
            "sources of the code": f"Python {platform.python_version()}",
            "minutes of measuring": round(sum(record["seconds"] for record in records) / 60),
        },
    )
    for plan, record in zip(planned, records, strict=True):
        add_targets(result, plan, record)
        add_document(result, plan, record)
        result.series[plan.document.name] = points(record)
    result.notes += NOTES
    return result
