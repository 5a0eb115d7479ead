"""What a run on a GPU found, written down stage by stage, and laid out in tables."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from .gpu_tests import KINDS
from .machine import git_commit, header

if TYPE_CHECKING:
    from pathlib import Path

READS = ("key_bytes_gathered", "value_bytes_gathered", "streamed_bytes")
"""Counters of what a step read of cold pages, in RAM, by copy or directly."""


class Cut(Exception):
    """The time is over: what was begun has no result."""


class Journal:
    """The results in ``gpu.json``, written after every stage, and the tables in ``gpu.md``."""

    def __init__(self, folder: Path, run: dict[str, Any]) -> None:
        self.folder, self._path = folder, folder / "gpu.json"
        self.content: dict[str, Any] = {"run": run, "head": header(), "stages": {}}
        if self._path.exists():
            self.content = json.loads(self._path.read_text(encoding="utf-8"))
            if self.content["run"] != run:
                sys.exit(f"{folder} has results of {self.content['run']}, and this is {run}: name another --out")

    def done(self, name: str) -> bool:
        """Tell whether a stage has a result; one that broke is tried again."""
        found = self.content["stages"].get(name, {})
        return bool(found) and "error" not in found and found.get("finished", True)

    def write(self, name: str, result: dict[str, Any]) -> None:
        """Put a result into both files."""
        when = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        self.content["stages"][name] = {"at": when, "commit": git_commit(), **result}
        self.folder.mkdir(parents=True, exist_ok=True)
        for path, text in (
            (self._path, json.dumps(self.content, indent=1) + "\n"),
            (self.folder / "gpu.md", markdown(self.content)),
        ):
            fresh = path.with_suffix(".new")
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(path)


def markdown(content: dict[str, Any]) -> str:
    """Lay out the results."""
    found = content["stages"]
    lines = ["# KIV on a GPU", "", *(f"- {key}: {value}" for key, value in (content["run"] | content["head"]).items())]
    if "conformance" in found:
        suite = found["conformance"]
        said = ", ".join(f"{suite.get(kind, 0)} {kind}" for kind in KINDS)
        lines += ["", f"Conformance of `fast`, profile dev: {said}{'' if suite.get('finished') else ' (cut)'}."]
        lines += [f"- {test}" for test in suite.get("failures", {})]
    if "findings" in found.get("doctor", {}):
        lines += ["", "| check | finding | verdict | reason and remedy |", "|" + " --- |" * 4]
        for row in found["doctor"]["findings"]:
            verdict = "well" if row["well"] else "not well"
            lines.append(f"| {row['name']} | {row['value']} | {verdict} | {row['reason']} {row['remedy']} |")
    columns = (
        "stage",
        "decode ms",
        "prefill ms a chunk",
        "launches",
        "waits",
        "copied MB",
        "read MB",
        "device GB",
        "RAM GB",
    )
    lines += ["", "| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += [_row(name, result) for name, result in found.items() if name not in ("doctor", "conformance")]
    errors = [f"- {name}: {result['error']}" for name, result in found.items() if "error" in result]
    return "\n".join([*lines, *(["", "Broken:", *errors] if errors else [])]) + "\n"


def _row(name: str, result: dict[str, Any]) -> str:
    if "step_ms" not in result:
        said = next((f"{key}: {result[key]}" for key in ("did not fit", "not run", "error") if key in result), "-")
        return f"| {name} | {said} |" + " - |" * 7
    trace = result["trace"]
    copied = sum(count for key, count in trace.items() if key.startswith("copied_bytes"))
    read = sum(result["read_a_step"].get(name, 0) for name in READS)
    cells = [
        f"{result['step_ms']:.3g}", f"{result['prefill_chunk_ms']:.3g}", f"{trace['launches']:.0f}",
        f"{trace['waits']:.0f}", f"{copied / 1e6:.3g}", f"{read / 1e6:.3g}", f"{result['device_bytes'] / 1e9:.3g}",
        f"{result['tiers'].get('ram', 0) / 1e9:.3g}",
    ]  # fmt: skip
    return f"| {name} | " + " | ".join(cells) + " |"
