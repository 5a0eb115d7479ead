"""Compare a layer's decode step of two revisions: time, counted operations and bytes.

    nox -s regression -- OLD [NEW]     # any names that git knows; without NEW the working tree
    nox -s regression -- --history     # what was measured on this machine so far

The revisions take turns, every run in a process of its own, so that noise falls on both alike; one thread. What
pytest-benchmark measures is kept in `.benchmarks`, where its own commands find it too.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from .layer_steps import PACKAGES
from .machine import ROOT
from .report import Table, short, show

HISTORY = ROOT / ".benchmarks"
WORKING_TREE = "."
COUNTED = ("operations", "bytes read", "device bytes", "RAM bytes")

Run = dict[str, dict[str, float]]
"""Case -> "ms", and whatever is counted."""


def git(*arguments: str) -> bytes:
    """Run git in this repository."""
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True).stdout


def installed(revision: str, scratch: Path) -> tuple[str, Path]:
    """Build the packages of a revision, compiled parts included; return a label and the folder that has them."""
    label = "working-tree"
    if revision != WORKING_TREE:
        label = git("rev-parse", "--short=12", f"{revision}^{{commit}}").decode().strip()
    source, site = scratch / f"{label}-source", scratch / label
    if not site.exists():
        if revision == WORKING_TREE:
            for name in git(
                "ls-files", "--cached", "--others", "--exclude-standard", "packages", "VERSION"
            ).splitlines():
                copy = source / name.decode()
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name.decode(), copy)
        else:
            with tarfile.open(fileobj=io.BytesIO(git("archive", label))) as archive:
                archive.extractall(source, filter="data")
        packages = sorted(str(path.parent) for path in source.glob("packages/*/pyproject.toml"))
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
        subprocess.run([*pip, "--target", str(site), *packages], check=True)
    return label, site


def measure(label: str, site: Path, options: list[str]) -> Run:
    """Measure the packages in a folder once, in a process of its own, and keep it in the history."""
    env = os.environ | {PACKAGES: str(site), "PYTHONPATH": os.pathsep.join([str(site), str(ROOT), *sys.path[1:]])}
    env.pop("PYTEST_XDIST_WORKER", None)  # in a worker of a test run pytest-benchmark would measure nothing
    command = [sys.executable, "-m", "pytest", "benchmarks/layer_steps.py", "-q", "-o", "addopts=", "-p", "no:xdist"]
    command += ["-p", "no:cacheprovider", f"--benchmark-storage={HISTORY.as_uri()}", f"--benchmark-save={label}"]
    ended = subprocess.run([*command, *options], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(f"{label} could not be measured:\n{ended.stdout}{ended.stderr}")
    return read(max(HISTORY.glob(f"*/*_{label}.json")))


def read(path: Path) -> Run:
    """Read what pytest-benchmark wrote: medians of the steps of each case, and what was counted."""
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
    return {
        f"{made['params']['geometry']}, {short(made['params']['tokens'])}": {
            "ms": 1e3 * made["stats"]["median"],
            **made["extra_info"],
        }
        for made in found
    }


def compared(old: tuple[str, list[Run]], new: tuple[str, list[Run]]) -> Table:
    """Lay out old ÷ new of every case, each the median of its runs, with both values in brackets."""
    title = f"Old ÷ new (old → new): {old[0]} → {new[0]}, medians of {len(new[1])} runs each"
    table = Table(title, ("layer, tokens", "ms a step", *COUNTED))
    for case in new[1][0]:
        cells: list[str] = []
        for what in ("ms", *COUNTED):
            before, after = (median(run[case][what] for run in runs) for _, runs in (old, new))
            ratio = show(before / after) if after else "-"
            cells.append(f"{ratio} ({show(before)} → {show(after)})")
        table.add(case, *cells)
    return table


def history() -> Table:
    """Lay out the median milliseconds of a step of every run in the history, the oldest first."""
    runs = [(path.stem, read(path)) for path in sorted(HISTORY.glob("*/*.json"))]
    cases = list(dict.fromkeys(case for _, run in runs for case in run))
    table = Table("Milliseconds of a step", ("run", *cases))
    for name, run in runs:
        table.add(name, *(run[case]["ms"] if case in run else None for case in cases))
    return table


def main(argv: list[str] | None = None) -> None:
    """Run the comparison and print its table."""
    made = argparse.ArgumentParser(prog="benchmarks.regression", description=str(__doc__).splitlines()[0])
    made.add_argument("old", nargs="?", default="HEAD", help="a revision (default: HEAD)")
    made.add_argument("new", nargs="?", default=WORKING_TREE, help="a revision (default: the working tree)")
    made.add_argument("--turns", type=int, default=3, help="runs of each revision")
    made.add_argument("--history", action="store_true", help="measure nothing: print what was measured so far")
    made.add_argument("-k", help="measure only what pytest chooses by this expression")
    options = made.parse_args(argv)
    if options.history:
        print(history().markdown())
        return
    with tempfile.TemporaryDirectory() as scratch:
        sides = [installed(revision, Path(scratch)) for revision in (options.old, options.new)]
        runs: list[list[Run]] = [[], []]
        for turn in range(options.turns):
            for side in (0, 1) if turn % 2 == 0 else (1, 0):
                runs[side].append(measure(*sides[side], ["-k", options.k] if options.k else []))
    print(compared((sides[0][0], runs[0]), (sides[1][0], runs[1])).markdown())


if __name__ == "__main__":
    main()
