"""The runs under other settings of the processor: every pair of settings meets, and a run that shows nothing fails."""

from __future__ import annotations

import os
from itertools import combinations
from typing import TYPE_CHECKING

import pytest

from . import processors
from .processors import CAPABILITIES, ISAS, THREADS, Setting, main, run, settings, table

if TYPE_CHECKING:
    from pathlib import Path

PLAIN = Setting("default", "SSE41", 1)
"""What every processor can do."""


def test_any_two_settings_meet() -> None:
    """Each capability that the processor has with each ISA and each number of threads."""
    have = [name for name, supported in CAPABILITIES.items() if supported()]
    rows = settings(short=False)
    for (i, first), (j, second) in combinations(enumerate([have, list(ISAS), list(THREADS)]), 2):
        if len(have) == len(THREADS):  # a processor with fewer has fewer rows than pairs
            assert {(row[i], row[j]) for row in rows} == {(a, b) for a in first for b in second}
    assert {row.capability for row in rows} == set(have)
    assert len(settings(short=True)) == 3


@pytest.mark.parametrize(
    ("body", "counts", "wrong"),
    [
        ("assert True", (1, 0, 0), ""),
        ("assert False", (0, 1, 0), "pytest ended with 1"),
        ("import pytest; pytest.skip('never')", (0, 0, 1), "no test ran"),
    ],
)
def test_a_run_counts_what_passed(tmp_path: Path, body: str, counts: tuple[int, int, int], wrong: str) -> None:
    """A failure and a run without a test that passed are wrong."""
    path = tmp_path / "test_it.py"
    path.write_text(f"def test_it():\n    {body}\n", encoding="utf-8")
    result = run(PLAIN, [str(path)])
    assert (result[2:5], result.wrong) == (counts, wrong)
    assert result.isa
    assert "default  SSE41" in table([result])


def test_a_setting_without_effect_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch may ignore a variable: the run would be one of the settings that were there."""
    monkeypatch.setattr(Setting, "environment", lambda self: os.environ | {"ATEN_CPU_CAPABILITY": "default"})
    assert "took no effect" in run(Setting("avx2", "SSE41", 1), []).wrong


def test_the_command_fails_if_one_setting_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And prints a line for each."""
    results = iter(["", "pytest ended with 1", ""])
    monkeypatch.setattr(
        processors, "run", lambda setting, tests: processors.Result(setting, "any", 1, 0, 0, next(results))
    )
    assert main(["--short"]) == 1
    assert capsys.readouterr().out.count("any") == 3
