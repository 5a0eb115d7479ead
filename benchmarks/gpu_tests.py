"""The conformance suite on a device, in several processes, going on where a limit cut it.

As a plugin of pytest this module writes every test's outcome down as soon as it is there, and leaves out the tests that
have one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).resolve().parent.parent
PLACE, SHARD = "KIV_GPU_TESTS", "KIV_GPU_SHARD"
"""Environment variables: the folder of the outcomes, and which part of the tests is this process's, as "1/4"."""

ENDED = (0, 1, 5)
"""Exit codes of pytest when all tests were run: well, with failures, or without a test left."""


def run(folder: Path, impl: str, device: str, workers: int, quick: bool, end: float) -> dict[str, Any]:
    """Run what is left of the suite until it is over or ``time.monotonic()`` is `end`; decode steps first.

    Returns
    -------
    dict: ``finished``, ``passed``, ``failed``, ``skipped``, ``failures`` (test -> message), and ``error``, what pytest
    said if it could not run the tests
    """
    folder.mkdir(parents=True, exist_ok=True)
    suite = sorted((ROOT / "conformance").glob("test_ch01*.py" if quick else "test_ch*.py"))
    files = [str(path.relative_to(ROOT)) for path in suite]
    files = files if quick else ["conformance/test_decode_steps.py", *files, "conformance/test_machine.py"]
    options = ["--impl", impl, "--device", device, "--profile", "dev", "-q", "-o", "addopts="]
    command = [sys.executable, "-m", "pytest", *files, *options, "-p", "no:cacheprovider", "-p", "benchmarks.gpu_tests"]
    logs = [folder / f"worker-{number}.log" for number in range(workers)]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for number, log in enumerate(logs):
            env = os.environ | {PLACE: str(folder.resolve()), SHARD: f"{number}/{workers}"}
            with log.open("wb") as stream:
                processes.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=stream, stderr=subprocess.STDOUT))
        while time.monotonic() < end and any(process.poll() is None for process in processes):
            time.sleep(0.2)
    finally:
        codes = [process.poll() for process in processes]
        for process in processes:
            process.kill()
            process.wait()
    complaints = [
        log.read_text(encoding="utf-8", errors="replace")[-2000:]
        for log, code in zip(logs, codes, strict=True)
        if code is not None and code not in ENDED
    ]
    error = {"error": complaints[0]} if complaints else {}
    return {"finished": all(code in ENDED for code in codes), **summary(folder), **error}


def summary(folder: Path) -> dict[str, Any]:
    """Count the outcomes that are in `folder`."""
    outcomes = read(folder)
    counts = {kind: sum(1 for line in outcomes.values() if line["outcome"] == kind) for kind in KINDS}
    failures = {test: line["message"] for test, line in outcomes.items() if line["outcome"] == "failed"}
    return {**counts, "failures": failures}


KINDS = ("passed", "failed", "skipped")


def read(folder: Path) -> dict[str, dict[str, str]]:
    """Return the outcomes in `folder` by test; a line that a kill cut short counts as not written."""
    outcomes: dict[str, dict[str, str]] = {}
    for path in sorted(folder.glob("outcomes-*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.endswith("}"):
                found = json.loads(line)
                outcomes[found["test"]] = found
    return outcomes


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep this process's part of the tests that have no outcome yet."""
    number, workers = map(int, os.environ[SHARD].split("/"))
    done = read(Path(os.environ[PLACE]))
    mine = [item for item in items if item.nodeid not in done and zlib.crc32(item.nodeid.encode()) % workers == number]
    config.hook.pytest_deselected(items=[item for item in items if item not in mine])
    items[:] = mine


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write an outcome down: of the call, or of what went wrong around it."""
    if report.when != "call" and report.passed:
        return
    number = os.environ[SHARD].split("/")[0]
    line = {"test": report.nodeid, "outcome": report.outcome, "message": report.longreprtext[-2000:]}
    with (Path(os.environ[PLACE]) / f"outcomes-{number}.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
