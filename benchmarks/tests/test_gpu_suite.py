"""The conformance suite as the run on a GPU has it: in parts, and on from where it was cut."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from benchmarks import gpu_tests
from benchmarks.machine import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_the_suite_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    line = {"test": "conformance/x.py::test_a", "outcome": "failed", "message": "wrong"}
    (tmp_path / "outcomes-0.jsonl").write_text(json.dumps(line) + '\n{"test": "conformance/x.py::te', encoding="utf-8")
    assert gpu_tests.read(tmp_path) == {line["test"]: line}
    assert gpu_tests.summary(tmp_path)["failures"] == {line["test"]: "wrong"}


def test_shards_are_all_tests_once(tmp_path: Path) -> None:
    listed = []
    command = [sys.executable, "-m", "pytest", "conformance/test_ch01_terms.py", "--collect-only", "-q"]
    for number in range(3):
        env = os.environ | {gpu_tests.PLACE: str(tmp_path), gpu_tests.SHARD: f"{number}/3"}
        ended = subprocess.run(
            [*command, "-p", "benchmarks.gpu_tests", "-p", "no:cacheprovider"],
            cwd=ROOT, env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        listed += [line for line in ended.stdout.splitlines() if "::" in line]
    whole = subprocess.run([*command, "-p", "no:cacheprovider"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert sorted(listed) == sorted(line for line in whole.stdout.splitlines() if "::" in line)


def test_a_suite_that_cannot_run_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", "--no-such-option")
    found = gpu_tests.run(tmp_path, "fast", "cpu", 1, quick=True, end=time.monotonic() + 120)
    assert not found["finished"]
    assert "no-such-option" in found["error"]
