from __future__ import annotations

import json

import pytest

from benchmarks.report import Result, Target, short, show


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [(1.0, "met"), (1.1, "met"), (1.21, "missed by 10.0%"), (None, "not measured")],
)
def test_verdict_compares_with_the_limit(measured, verdict):
    assert Target("ratio", 1.1, measured).verdict == verdict


@pytest.mark.parametrize(("count", "text"), [(4096, "4K"), (2**20, "1M"), (1536, "1536"), (3072, "3K"), (7, "7")])
def test_contexts_are_shown_in_binary_units(count, text):
    assert short(count) == text


def test_cells_show_three_digits():
    assert [show(cell) for cell in (None, 1234567, 1234.5, 0.012345, "text")] == [
        "-",
        "1,234,567",
        "1,234",
        "0.0123",
        "text",
    ]


def test_a_result_is_written_three_times(tmp_path):
    result = Result("sample", "A sample", {"impl": "fast"})
    result.table("Times", "context", "ms").add("4K", 61.54)
    result.target("4K", 60.0, 61.54, "ms")
    result.series["raw"] = [1, 2]
    result.write(tmp_path, lambda figure: figure.subplots().plot(result.series["raw"]))
    content = json.loads((tmp_path / "sample.json").read_text())
    assert content["targets"] == [
        {"name": "4K", "limit": 60.0, "measured": 61.54, "unit": "ms", "verdict": "missed by 2.6%"}
    ]
    assert content["tables"][0]["rows"] == [["4K", 61.54]]
    assert content["series"] == {"raw": [1, 2]}
    assert {"date", "commit", "machine", "threads", "versions"} <= set(content["head"])
    text = (tmp_path / "sample.md").read_text()
    assert "| 4K | 61.5 |" in text
    assert "| 4K | ≤ 60 ms | 61.5 ms | missed by 2.6% |" in text
    assert (tmp_path / "sample.png").read_bytes().startswith(b"\x89PNG")
