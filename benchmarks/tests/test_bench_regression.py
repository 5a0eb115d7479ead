"""The comparison of two revisions: whose packages are measured, what is laid out, and a run of its shortest cases."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import pytest

from benchmarks import regression
from benchmarks.layer_steps import GEOMETRIES
from benchmarks.regression import COUNTED, WORKING_TREE, compared, history, installed, measure

if TYPE_CHECKING:
    from pathlib import Path

WITHOUT = importlib.util.find_spec("pytest_benchmark") is None


def run(ms: float, count: int = 10) -> regression.Run:
    return {"a, 4K": {"ms": ms, **dict.fromkeys(COUNTED, count)}}


def test_ratios_are_old_to_new_of_the_medians() -> None:
    table = compared(("aaa", [run(2.0, 30), run(9.0, 30), run(4.0, 30)]), ("bbb", [run(1.0), run(2.0), run(7.0)]))
    assert "aaa → bbb" in table.title
    assert table.rows == [("a, 4K", "2 (4 → 2)", *["3 (30 → 10)"] * len(COUNTED))]
    assert compared(("a", [run(1.0)]), ("b", [run(1.0, 0)])).rows[0][2] == "- (10 → 0)"


@pytest.mark.skipif(WITHOUT, reason="needs pytest-benchmark")
def test_the_shortest_cases_of_packages_built_anew_are_measured_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regression, "HISTORY", tmp_path / "history")
    label, site = installed(WORKING_TREE, tmp_path)
    assert (label, site) == ("working-tree", tmp_path / label)
    found = measure(label, site, ["-k", "4K"])
    assert list(found) == [f"{geometry}, 4K" for geometry in GEOMETRIES]
    for of_case in found.values():
        assert set(of_case) == {"ms", *COUNTED}
        assert min(of_case.values()) > 0
    assert history().rows == [("0001_working-tree", *(of_case["ms"] for of_case in found.values()))]


@pytest.mark.skipif(WITHOUT, reason="needs pytest-benchmark")
def test_packages_from_elsewhere_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regression, "HISTORY", tmp_path / "history")
    with pytest.raises(SystemExit, match="other packages than those to be measured"):
        measure("elsewhere", tmp_path, ["-k", "4K"])
