"""What a run on a GPU says: verdicts on targets, and tables in which no figure is taken for another."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.gpu_sizes import GEOMETRIES, K
from benchmarks.gpu_tables import markdown
from benchmarks.gpu_targets import targets, telling

LARGE, SMALL = 85 * 10**9, 24 * 10**9


def steps(name: str = "llama", **ms: float) -> dict[str, dict[str, float]]:
    """Return decode stages: ``kiv_128=3.0`` is KIV at 128K."""
    return {f"{name} {int(key.split('_')[1]) * K} {key.split('_')[0]}": {"step_ms": value} for key, value in ms.items()}


def prompts(kiv: float | None, plain: float | None, whole: float | None) -> dict[str, dict[str, float]]:
    taken = {"kiv": kiv, "plain": plain, "plain in one pass": whole}
    return {f"smollm2 {128 * K} {kind}, prefill": {"prefill_s": s} for kind, s in taken.items() if s is not None}


GROWN, TO_PLAIN = "KIV at 1M ÷ KIV at 4K", "KIV at 128K ÷ plain at 4K"


@pytest.mark.parametrize(
    ("stages", "card", "name", "measured", "verdict"),
    [
        (steps(kiv_1024=12.0, kiv_4=10.0), LARGE, f"Llama-3.1-8B: {GROWN}", 1.2, "met"),
        (steps(kiv_1024=13.2, kiv_4=10.0), LARGE, f"Llama-3.1-8B: {GROWN}", 1.32, "missed by 10.0%"),
        (steps(kiv_4=10.0), LARGE, f"Llama-3.1-8B: {GROWN}", None, "not measured"),
        (steps(kiv_1024=10.0), LARGE, f"Llama-3.1-8B: {GROWN}", None, "not measured"),
        (steps("wide", kiv_128=6.0, plain_4=5.0), SMALL, f"{GEOMETRIES['wide'].title}: {TO_PLAIN}", 1.2, "met"),
        (steps("wide", kiv_128=9.0, plain_4=5.0, kiv_4=9.0), SMALL, f"{GEOMETRIES['wide'].title}: {TO_PLAIN}", 1.8,
         "missed by 50.0%"),
        (steps("wide", kiv_128=9.0, plain_4=5.0), SMALL, f"Llama-3.1-8B: {TO_PLAIN}", None, "not measured"),
        (steps(kiv_128=25.0), LARGE, "Llama-3.1-8B: KIV at 128K", 25.0, "met"),
        (steps(kiv_128=26.0), LARGE, "Llama-3.1-8B: KIV at 128K", 26.0, "missed by 4.0%"),
        (steps(kiv_1024=37.0), LARGE, "Llama-3.1-8B: KIV at 1M", 37.0, "met"),
        (steps(kiv_1024=74.0), LARGE, "Llama-3.1-8B: KIV at 1M", 74.0, "missed by 100.0%"),
        (prompts(11.5, 20.0, 10.0), SMALL, "SmolLM2-135M: prefill at 128K ÷ plain", 1.15, "met"),
        (prompts(11.5, 10.0, None), SMALL, "SmolLM2-135M: prefill at 128K ÷ plain", 1.15, "met"),
        (prompts(12.0, 20.0, 8.0), SMALL, "SmolLM2-135M: prefill at 128K ÷ plain", 1.5, "missed by 30.4%"),
        (prompts(12.0, None, None), SMALL, "SmolLM2-135M: prefill at 128K ÷ plain", None, "not measured"),
        (prompts(None, 1.0, 1.0), SMALL, "SmolLM2-135M: prefill at 128K ÷ plain", None, "not measured"),
    ],
)  # fmt: skip
def test_verdicts(stages: dict[str, Any], card: int, name: str, measured: float | None, verdict: str) -> None:
    (found,) = [one for one in targets(stages, card) if one.name == name]
    assert found.measured == (None if measured is None else pytest.approx(measured))
    assert found.verdict == verdict
    assert f"| {name} |" in markdown({"run": {"device_bytes": card}, "head": {}, "stages": complete(stages)})


def test_milliseconds_are_no_target_of_smaller_cards() -> None:
    assert len(list(targets({}, LARGE))) == len(list(targets({}, SMALL))) + 2
    assert not [one for one in targets({}, SMALL) if one.unit]


def test_what_targets_read_comes_first() -> None:
    asked: set[str] = set()

    class Asked(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            asked.add(key)
            return default

    list(targets(Asked(), LARGE))
    assert len(asked) == 7 * len(GEOMETRIES)
    for name in asked:
        _, tokens, kind = name.removesuffix(", prefill").split(" ", 2)
        assert telling(int(tokens), kind, name.endswith(", prefill"))


def complete(stages: dict[str, Any]) -> dict[str, Any]:
    counts = {"trace": {"launches": 5.0, "waits": 0.0}, "read_a_step": {}, "tiers": {}}
    return {name: counts | stage for name, stage in stages.items()}


def columns_of(said: str, first: str) -> list[dict[str, str]]:
    """Return the rows of the table whose first column has this name, each by column."""
    lines = [*said.splitlines(), ""]
    begin = next(n for n, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[begin : lines.index("", begin)]]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


def test_predicted_figures_stand_in_columns_that_say_so() -> None:
    kiv, plain = f"llama {128 * K} kiv", f"llama {128 * K} plain"
    stages: dict[str, Any] = complete(steps(kiv_128=11.0, plain_128=22.0))
    stages[kiv] |= {
        "prefill_chunk_ms": 33.0, "tiers": {"device": 44 * 10**6, "ram": 55 * 10**6}, "operations": "triton, torch",
        "predicted": {"step_ms": 111.0, "prefill_chunk_ms": 333.0, "prefill_s": 777.0,
                      "tiers": {"device": 444 * 10**6, "ram": 555 * 10**6}},
    }  # fmt: skip
    stages[plain] |= {"predicted": {"step_ms": 222.0}}
    stages[f"{kiv}, prefill"] = {"prefill_s": 66.0, "predicted": stages[kiv]["predicted"]}
    said = markdown({"run": {"card": "A"}, "head": {}, "stages": stages})
    (decode,), (prefill,) = columns_of(said, "decode, ms"), columns_of(said, "prefill, s")
    count = columns_of(said, "a step")[0]
    assert (decode["kiv"], decode["plain"], decode["kiv ÷ plain"], decode["chunk, kiv"]) == ("11", "22", "0.5", "33")
    assert (count["by"], count["device, MB"], count["RAM, MB"]) == ("triton, torch", "44", "55")
    assert prefill["kiv"] == "66"
    foretold = {"111", "222", "333", "444", "555", "777"}
    cells = [*decode.items(), *prefill.items(), *count.items()]
    assert {value for name, value in cells if "predicted" in name} == foretold
    assert not foretold & {value for name, value in cells if "predicted" not in name}


def test_rows_that_the_device_kept_are_shown() -> None:
    stages: dict[str, Any] = complete(steps(kiv_4=1.0))
    stages[f"llama {4 * K} kiv"]["read_a_step"] = {
        "key_bytes_gathered": 3e6, "streamed_bytes": 1e6, "disk_bytes_read": 0, "keys kept": 900.0,
        "keys read": 1000.0, "values kept": 70.0, "values read": 100.0, "bytes over the bus": 1234.0,
    }  # fmt: skip
    (row,) = columns_of(markdown({"run": {}, "head": {}, "stages": stages}), "a step")
    assert row["cold read, MB"] == "4"
    assert row["rows on the device"] == "keys hits 0.9, values hits 0.7, bytes over the bus 1,234"


def test_a_table_says_what_has_no_figure_and_why() -> None:
    stages: dict[str, Any] = {
        "llama 4096 plain": {"did not fit": "CUDA out of memory"},
        "llama 4096 kiv": {"left out": "needs 9 GB of RAM, predicted"},
        "models": {"error": "ImportError: no"},
        "conformance fast": {"passed": 3, "failed": 1, "skipped": 0, "failures": {"a::b": "wrong"}},
        "operations": {"well": False},
    }
    said = markdown({"run": {"card": "A"}, "head": {}, "stages": stages})
    for line in (
        "- llama 4096 plain: CUDA out of memory", "- llama 4096 kiv: needs 9 GB of RAM, predicted",
        "- models: ImportError: no", "- a::b", "Not well: on a CUDA device Triton was to compute steps.",
        "Conformance fast, profile dev: 3 passed, 1 failed, 0 skipped (cut).",
    ):  # fmt: skip
        assert line in said.splitlines()
