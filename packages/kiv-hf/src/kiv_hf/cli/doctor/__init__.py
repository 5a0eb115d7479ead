"""``kiv doctor``: whether KIV works on this machine, in under two minutes; where not, the reason and the remedy."""

from __future__ import annotations

import json
import platform
import sys
import time
from typing import TYPE_CHECKING, Any, cast

import torch
from rich.table import Table
from rich.text import Text

from ... import __version__
from ..terminal import printable
from .finding import Finding, examine
from .machine import machine_checks
from .stores import store_checks
from .times import time_checks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console

BUG = "Report it with this table: it is a fault of KIV, of torch or of the device."


def checks(device: torch.device) -> Iterator[tuple[str, Callable[[], Finding], str]]:
    """Yield every check in turn: its name, what carries it out, and the remedy if that raises."""
    yield from machine_checks(device)
    yield from ((name, check, BUG) for name, check in store_checks(device))
    yield from ((name, check, "Free memory, and try again.") for name, check in time_checks(device))


def report(device: torch.device, told: Callable[[str], None]) -> dict[str, object]:
    """Carry out all checks.

    Parameters
    ----------
    told : callable
        Called with the name of each check before it begins.

    Returns
    -------
    dict, fit for JSON: ``well`` (bool), ``device``, ``versions``, ``seconds``, ``findings`` (a list of dicts)
    """
    begin = time.perf_counter()
    findings: list[Finding] = []
    for name, check, remedy in checks(device):
        told(name)
        findings.append(examine(name, check, remedy))
    return {
        "well": all(finding.well for finding in findings),
        "device": str(device),
        "versions": {"kiv": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "seconds": round(time.perf_counter() - begin, 1),
        "findings": [finding._asdict() for finding in findings],
    }


def table_of(found: dict[str, object]) -> Table:
    """Lay out what `report` returned."""
    table = Table(title=f"kiv doctor: {found['device']}")
    for column in ("check", "finding", "verdict", "reason and remedy"):
        table.add_column(column, overflow="fold")
    findings = cast("list[dict[str, Any]]", found["findings"])
    for finding in (Finding(**fields) for fields in findings):
        verdict = Text("well", style="green") if finding.well else Text("not well", style="red")
        advice = " ".join(part for part in (finding.reason, finding.remedy) if part)
        table.add_row(
            *(Text(printable(part)) for part in (finding.name, finding.value)), verdict, Text(printable(advice))
        )
    return table


def doctor(device: torch.device, as_json: bool, out: Console, err: Console) -> bool:
    """Examine the machine, print the table or JSON to `out`, and return whether all is well."""
    with err.status("Examining") as status:
        found = report(device, lambda name: status.update(f"Examining: {name}"))
    if as_json:
        out.file.write(json.dumps(found, indent=1) + "\n")
    else:
        out.print(table_of(found))
        ended = "all is well" if found["well"] else "not all is well"
        out.print(f"{ended}; {found['seconds']} s, Python {sys.version.split()[0]}", highlight=False)
    return bool(found["well"])
