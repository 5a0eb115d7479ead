from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from matplotlib.figure import Figure

from benchmarks.draw import draw_all
from benchmarks.options import RESULTS
from benchmarks.report import SHARES, Result, Target, quantile_panel, quantiles, rounded, short, show, written

if TYPE_CHECKING:
    from pathlib import Path

MOST_BYTES = 220_000
"""Of all JSON among the committed results."""


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [(1.0, "met"), (1.1, "met"), (1.21, "missed by 10.0%"), (None, "not measured")],
)
def test_verdict_compares_with_the_limit(measured: float | None, verdict: str) -> None:
    assert Target("ratio", 1.1, measured).verdict == verdict


@pytest.mark.parametrize(("count", "text"), [(4096, "4K"), (2**20, "1M"), (1536, "1536"), (3072, "3K"), (7, "7")])
def test_contexts_are_shown_in_binary_units(count: int, text: str) -> None:
    assert short(count) == text


def test_cells_show_three_digits() -> None:
    assert [show(cell) for cell in (None, 1234567, 1234.5, 0.012345, "text")] == [
        "-",
        "1,234,567",
        "1,234",
        "0.0123",
        "text",
    ]


def test_a_result_is_written_three_times_and_read_again(tmp_path: Path) -> None:
    result = Result("sample", "A sample", {"impl": "fast"})
    result.table("Times", "context", "ms").add("4K", 61.54)
    result.target("4K", 60.0, 61.54, "ms")
    result.series["raw"] = [1, 2 / 3]
    result.write(tmp_path, lambda figure, found: figure.subplots().plot(found.series["raw"]))
    content = json.loads((tmp_path / "sample.json").read_text(encoding="utf-8"))
    assert content["targets"] == [{"name": "4K", "limit": 60.0, "measured": 61.54, "unit": "ms"}]
    assert content["tables"][0]["rows"] == [["4K", 61.54]]
    assert content["series"] == {"raw": [1, 0.666667]}
    assert {"date", "commit", "machine", "threads", "versions"} <= set(content["head"])
    text = (tmp_path / "sample.md").read_text(encoding="utf-8")
    assert "| 4K | 61.5 |" in text
    assert "| 4K | ≤ 60 ms | 61.5 ms | missed by 2.6% |" in text
    assert (tmp_path / "sample.png").read_bytes().startswith(b"\x89PNG")
    assert Result.read(tmp_path / "sample.json").markdown() == text == result.markdown()


def test_json_has_short_lists_on_a_line() -> None:
    value = {"ü": [1, None, "a"], "long": [["x" * 150, 1.5], ["y" * 150]], "empty": {}}
    text = written(value)
    assert json.loads(text) == value
    assert ' "ü":[1,null,"a"],' in text.splitlines()
    assert len(text.splitlines()) == 8


def test_series_are_rounded_however_deep_they_lie() -> None:
    assert rounded({"a": ([1 / 3], "b", 7, None)}) == {"a": [[0.333333], "b", 7, None]}


def test_quantiles_stand_for_a_long_series() -> None:
    found = quantiles([float(i) for i in range(10_001)])
    assert found == pytest.approx([10_000 * share for share in SHARES])
    panel = Figure().subplots()
    quantile_panel(panel, {"step": found})
    assert np.asarray(panel.lines[0].get_ydata())[-1] == 10_000


def test_committed_results_are_small_and_make_their_tables_and_pictures(tmp_path: Path) -> None:
    committed = sorted(RESULTS.glob("*.json"))
    assert sum(path.stat().st_size for path in committed) <= MOST_BYTES
    for path in committed:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    draw_all(tmp_path)
    for path in committed:
        for same in (path, path.with_suffix(".md")):
            assert (tmp_path / same.name).read_text(encoding="utf-8") == same.read_text(encoding="utf-8")
        assert (tmp_path / path.with_suffix(".png").name).stat().st_size > 10_000
