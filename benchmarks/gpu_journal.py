"""What a run on a GPU found, written down stage by stage."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from .gpu_tables import markdown
from .machine import git_commit, header

if TYPE_CHECKING:
    from pathlib import Path


class Cut(Exception):
    """The time of a stage is over before it is."""


class Journal:
    """The results in ``gpu.json``, written after every stage, and the tables in ``gpu.md``."""

    def __init__(self, folder: Path, run: dict[str, Any]) -> None:
        self.folder, self._path = folder, folder / "gpu.json"
        # What the header says of operations holds for the CPU: each stage tells its own.
        head = {key: value for key, value in header().items() if key != "operations"}
        self.content: dict[str, Any] = {"run": run, "head": head, "stages": {}}
        if self._path.exists():
            self.content = json.loads(self._path.read_text(encoding="utf-8"))
            if self.content["run"] != run:
                sys.exit(f"{folder} has results of {self.content['run']}, and this is {run}: name another --out")

    def found(self, name: str) -> dict[str, Any]:
        """Return the result of a stage, empty without one."""
        return self.content["stages"].get(name, {})

    def done(self, name: str) -> bool:
        """Tell whether a stage has a result; one that broke is tried again."""
        found = self.found(name)
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
