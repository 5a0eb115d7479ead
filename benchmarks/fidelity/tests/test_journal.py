"""The journal: nothing is measured twice, nothing is lost when a run is cut off, other code starts another journal."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import pytest

from benchmarks.fidelity import journal
from benchmarks.fidelity.journal import Journal, fingerprint

if TYPE_CHECKING:
    from pathlib import Path


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    first = Journal(tmp_path / "a.jsonl")
    assert first.measured(("x", "1"), lambda: {"right": True})["right"]
    again = Journal(tmp_path / "a.jsonl")  # the first was never closed: as if it had been killed

    def never() -> dict[str, bool]:
        raise AssertionError("measured twice")

    assert again.measured(("x", "1"), never)["right"]
    assert ("x", "2") not in again


def test_a_half_written_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    whole = Journal(path)
    whole.measured(("x",), lambda: {"n": 1})
    whole.close()
    path.write_bytes(path.read_bytes() + b'{"key": ["y"], "rec')
    again = Journal(path)
    assert ("x",) in again
    assert again.measured(("y",), lambda: {"n": 2})["n"] == 2
    again.close()
    assert [key for key, _ in Journal(path).items()] == [("x",), ("y",)]


def test_a_failed_measurement_leaves_no_record(tmp_path: Path) -> None:
    made = Journal(tmp_path / "a.jsonl")
    with pytest.raises(ZeroDivisionError):
        made.measured(("x",), lambda: {"n": 1 // 0})
    assert ("x",) not in made


def test_the_fingerprint_knows_code_and_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = argparse.Namespace(seed=0, impl="fast", quick=False)
    base = fingerprint(options)
    assert fingerprint(options) == base
    assert fingerprint(argparse.Namespace(seed=1, impl="fast", quick=False)) != base
    other = tmp_path / "other.py"
    other.write_text("changed = True\n")
    files = journal.sources()
    names = {path.stem for path in files}
    assert {"contexts", "figures", "zoo", "models", "contract"} <= names
    assert not {"tables", "picture", "retention_part"} & names
    monkeypatch.setattr(journal, "sources", lambda: [*files, other])
    assert fingerprint(options) != base
