"""Measurements on disk as soon as they are made: a run that is cut off goes on where it was.

A journal lies in the user's cache folder, under the fingerprint of all that decides its figures: the sources of the
three packages and of this folder, the versions of torch and transformers, and the options. So figures of different code
never meet in one table, and a changed table or picture costs no new measurement.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from platformdirs import user_cache_path

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable

PACKAGES = ("kiv_reference", "kiv_fast", "kiv_hf")
SHOWING = {
    *("__init__", "__main__", "harness", "part", "picture", "plan", "retention_part", "tables"),
}
"""Modules of this folder that decide no figure; what a plan decides is in the keys of the records."""

Record = dict[str, Any]


def sources() -> list[Path]:
    """Return the files whose text decides the figures."""
    here = Path(__file__).parent
    found = [here.parent / "models.py"]
    found += sorted(path for path in (*here.glob("*.py"), *here.glob("long/*.py")) if path.stem not in SHOWING)
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        for folder in spec.submodule_search_locations or []:
            found += sorted(Path(folder).rglob("*.py"))
    return found


def fingerprint(options: argparse.Namespace) -> str:
    """Return twelve hexadecimal digits that change with anything that could change a figure."""
    digest = hashlib.sha256()
    for path in sources():
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

    def items(self) -> Iterable[tuple[tuple[str, ...], Record]]:
        """Return every key with its record."""
        return self._records.items()

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

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def open_journal(options: argparse.Namespace, part: str) -> Journal:
    """Open the journal of a part for these options and this code."""
    folder = user_cache_path("kiv-benchmarks") / "journals"
    return Journal(folder / f"{part}-{fingerprint(options)}.jsonl")
