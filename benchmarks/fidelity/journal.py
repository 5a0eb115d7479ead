"""Measurements on disk as soon as they are made: a run that is cut off goes on where it was.

A journal lies in the user's cache folder, under the fingerprint of all that decides its figures: the source of the
three packages and of the modules named here, the versions of torch and transformers, and the options. So figures of
different code never meet in one table, and a changed table or picture costs no new measurement.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path

PACKAGES = ("kiv_reference", "kiv_fast", "kiv_hf")
MODULES = (
    *("agreement", "contexts", "continuation", "documents", "memory", "plan", "pressed", "queries", "rival_costs"),
    *("systems", "task_level", "tasks", "window", "words"),
)
"""Modules of this folder, beside those of the packages, that decide what is measured."""

Record = dict[str, Any]


def sources() -> list[Path]:
    """Files whose text decides the figures; a package that is not installed adds none."""
    here = Path(__file__).parent
    found = [here / f"{name}.py" for name in MODULES]
    found += [here.parent / "models.py", here.parent / "original.py"]
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        for folder in (spec.submodule_search_locations or []) if spec is not None else []:
            found += sorted(Path(folder).rglob("*.py"))
    return found


def fingerprint(options: argparse.Namespace, files: Iterable[Path] | None = None) -> str:
    """Twelve hexadecimal digits that change with anything that could change a figure: `sources`, or `files`."""
    digest = hashlib.sha256()
    for path in sources() if files is None else files:
        digest.update(path.read_bytes())
    versions = [importlib.metadata.version(name) for name in ("torch", "transformers")]
    digest.update(json.dumps([versions, options.seed, options.impl, options.quick, torch.get_num_threads()]).encode())
    return digest.hexdigest()[:12]


class Journal:
    """Records by key, one JSON line each.

    Parameters
    ----------
    path : Path
        A half-written last line, of a run that was killed, is dropped; records before it are kept.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._records: dict[tuple[str, ...], Record] = {}
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()
            path.write_bytes(b"".join(lines))
        for line in lines:
            entry = json.loads(line)
            self._records[tuple(entry["key"])] = entry["record"]
        self._file = path.open("ab")

    def __contains__(self, key: tuple[str, ...]) -> bool:
        return key in self._records

    def __getitem__(self, key: tuple[str, ...]) -> Record:
        return self._records[key]

    def items(self) -> Iterable[tuple[tuple[str, ...], Record]]:
        """Every key with its record."""
        return self._records.items()

    def misses(self, keys: Iterable[tuple[str, ...]]) -> bool:
        """Whether a record of any of `keys` is missing."""
        return any(key not in self._records for key in keys)

    def measured(self, key: tuple[str, ...], measure: Callable[[], Record]) -> Record:
        """Return the record of `key`; if there is none, measure it, keep it, and note the seconds it took."""
        if key not in self._records:
            start = time.perf_counter()
            record = measure()
            record["seconds"] = round(time.perf_counter() - start, 3)
            self._records[key] = record
            self._file.write(json.dumps({"key": key, "record": record}).encode() + b"\n")
            self._file.flush()
        return self._records[key]

    @property
    def seconds(self) -> float:
        """Seconds that all records took, over all runs that made them."""
        return sum(record["seconds"] for record in self._records.values())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def open_journal(options: argparse.Namespace, part: str, files: Iterable[Path] | None = None) -> Journal:
    """Open the journal of a part for these options and this code, or for that of `files` alone."""
    folder = user_cache_path("kiv-benchmarks") / "journals"
    return Journal(folder / f"{part}-{fingerprint(options, files)}.jsonl")
