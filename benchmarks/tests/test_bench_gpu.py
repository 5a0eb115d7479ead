"""The run on a GPU: the whole of it at tiny sizes on a CPU, and how stages share the time."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import warnings
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from kiv_reference.errors import KIVUnsupportedError

from benchmarks import gpu, gpu_needs, gpu_sizes
from benchmarks.gpu_journal import Cut, Journal
from benchmarks.gpu_stages import IMPLEMENTATIONS, Stage, stages
from benchmarks.machine import ROOT

if TYPE_CHECKING:
    from pathlib import Path

SIZES = gpu_sizes.QUICK_SIZES
DECODES = [f"{name} {at} {kind}" for name in gpu_sizes.QUICK for at in SIZES.contexts for kind in gpu_sizes.SUBJECTS]
PREFILLS = [
    f"{name} {at} {kind}, prefill" for name in gpu_sizes.QUICK for at in SIZES.prompts for kind in gpu_sizes.PREFILLS
]
SUITES = [f"conformance {impl}" for impl in IMPLEMENTATIONS]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, in a process of its own: it has plugins and settings that tests must not see."""
    folder = tmp_path_factory.mktemp("gpu")
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--quick", "--out", str(folder)]
    command += ["--minutes", "20"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "doctor: at most 120 s, of 1200" in ended.stderr
    return folder


def stages_of(folder: Path) -> Any:
    return json.loads((folder / "gpu.json").read_text(encoding="utf-8"))["stages"]


def test_every_stage_has_a_result(finished: Path) -> None:
    found = stages_of(finished)
    assert list(found)[:3] == ["doctor", "operations", SUITES[0]]
    assert sorted(found) == sorted(["doctor", "operations", *SUITES, *DECODES, *PREFILLS])
    assert found["doctor"]["well"]
    assert found["operations"]["well"]
    assert list(found["operations"]["stores"]) == list(gpu_sizes.QUICK)
    for suite in SUITES:
        assert found[suite]["finished"]
        assert found[suite]["passed"] > 5
        assert found[suite]["failed"] == 0
    measured = [name for name in (*DECODES, *PREFILLS) if "offloaded" not in name]
    assert all("CUDA" in found[name]["left out"] for name in (*DECODES, *PREFILLS) if name not in measured)
    table = (finished / "gpu.md").read_text(encoding="utf-8")
    for name in measured:
        result = found[name]
        geometry, tokens = name.split()[:2]
        held = sum(result["tiers"].values())
        assert held >= int(tokens) * gpu_sizes.QUICK[geometry].token_bytes
        assert ("operations" in result) == (" kiv" in name)
        if name in DECODES:
            assert len(result["steps_ms"]) == SIZES.steps
            assert result["trace"]["operations"] > 0
            assert result["trace"]["launches"] == result["trace"]["waits"] == 0  # there is no GPU
            assert (result["read_a_step"].get("value_bytes_gathered", 0) > 0) == name.endswith("kiv")
            assert f"| {name} |" in table
        else:
            assert result["prefill_s"] > 0
    assert "not measured" in table


def test_a_second_run_has_nothing_to_do(finished: Path) -> None:
    before = stages_of(finished)
    assert gpu.main(["--device", "cpu", "--quick", "--out", str(finished)]) == 0
    assert stages_of(finished) == before


def test_no_time_leaves_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--device", "cpu", "--quick", "--minutes", "0", "--out", str(tmp_path)]) == gpu.AGAIN
    said = capsys.readouterr().out
    assert "Left for another run of the same command: doctor, operations, " in said
    assert all(name in said for name in (*DECODES, *PREFILLS, *SUITES))


def test_the_order_of_a_whole_run_is_that_of_what_it_tells(tmp_path: Path) -> None:
    options = argparse.Namespace(device="cuda", quick=False, minutes=8, workers=1)
    listed = list(stages(options, Journal(tmp_path, {"card": "A"})))
    names = [stage.name for stage in listed]
    assert names[:3] == ["doctor", "operations", SUITES[0]]
    assert names[-2:] == SUITES
    models = names[3:-2]
    assert len(set(models)) == len(models) == 3 * (5 * 4 + 2 * 4)
    assert models[:7] == [
        "smollm2 4096 kiv", "smollm2 4096 plain", "smollm2 131072 kiv", "smollm2 131072 kiv, prefill",
        "smollm2 131072 plain, prefill", "smollm2 131072 plain in one pass, prefill", "smollm2 1048576 kiv",
    ]  # fmt: skip
    assert [models[7].split()[0], models[14].split()[0]] == ["wide", "llama"]  # which targets need too
    assert models[21] == "smollm2 4096 original"
    assert all("offloaded" in name for name in models[-21:])
    most = [taken for stage in listed if (taken := stage.most_s()) is not None]
    assert len(most) == len(listed) - 2
    assert 0 < max(most) <= 60 * options.minutes - 60


@pytest.mark.parametrize("error", [ImportError("no transformers"), KIVUnsupportedError("transformers 5.17")])
def test_without_transformers_all_else_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    class Finder:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            if name == "benchmarks.gpu_models":
                raise error

    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    monkeypatch.delitem(sys.modules, "benchmarks.gpu_models", raising=False)
    monkeypatch.delattr("benchmarks.gpu_models", raising=False)
    options = argparse.Namespace(device="cpu", quick=True, minutes=8, workers=1)
    listed = list(stages(options, Journal(tmp_path, {"card": "A"})))
    assert [stage.name for stage in listed] == ["doctor", "operations", SUITES[0], "models", *SUITES]
    assert str(error) in gpu.carried_out(listed[3], 1)["error"]


class Clock:
    """A clock that stages move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.began: list[str] = []
        monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: self.now))

    def stage(self, name: str, most_s: float | None, takes_s: float, result: dict[str, Any] | None = None) -> Stage:
        def run(end: float) -> dict[str, Any]:
            self.began.append(name)
            self.now += min(takes_s, end - self.now)
            if takes_s > (most_s or takes_s):
                raise Cut
            return result or {"well": True}

        return Stage(name, run, lambda: most_s)


def test_what_would_not_fit_is_left_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, journal = Clock(monkeypatch), Journal(tmp_path, {"card": "A"})
    listed = [clock.stage("short", 30, 20), clock.stage("long", 50, 40), clock.stage("last", 30, 30)]
    listed += [clock.stage("rest", None, 5)]
    assert gpu.perform(listed, journal, 60) == gpu.AGAIN
    assert clock.began == ["short", "last", "rest"]  # 40 s are left for "long"
    said = capsys.readouterr()
    assert "Left for another run of the same command: long." in said.out
    assert said.err.splitlines() == [
        "short: at most 30 s, of 60", "last: at most 30 s, of 40", "rest: at most 10 s, of 10"
    ]  # fmt: skip
    assert gpu.perform(listed, Journal(tmp_path, {"card": "A"}), 60) == 0
    assert clock.began[3:] == ["long"]


def test_what_breaks_is_a_result_and_tried_again_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, journal = Clock(monkeypatch), Journal(tmp_path, {"card": "A"})

    def broken(end: float) -> dict[str, Any]:
        clock.began.append("broken")
        warnings.warn("memory is not pinned", RuntimeWarning, stacklevel=1)
        raise RuntimeError("no such kernel")

    listed = [clock.stage("slow", 10, 11), Stage("broken", broken, lambda: 10), clock.stage("good", 10, 1)]
    listed += [clock.stage("late", 100, 90)]
    assert gpu.perform(listed, journal, 60) == gpu.AGAIN
    assert journal.found("slow")["error"] == "not over after 10 s, the most that it gets"
    assert journal.found("broken")["error"] == "RuntimeError: no such kernel"
    assert "- broken: memory is not pinned" in capsys.readouterr().out
    assert gpu.perform(listed, journal, 150) == 1
    assert clock.began == ["slow", "broken", "good", "late", "slow", "broken"]


@pytest.mark.parametrize(
    ("result", "code"),
    [
        ({"well": True}, 0),
        ({"well": False}, 1),
        ({"failed": 2}, 1),
        ({"did not fit": "x"}, 0),
        ({"finished": False}, 75),
    ],
)
def test_exit_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result: dict[str, Any], code: int) -> None:
    listed = [Clock(monkeypatch).stage("one", 10, 1, result)]
    assert gpu.perform(listed, Journal(tmp_path, {"card": "A"}), 60) == code


@pytest.mark.parametrize("result", [{"error": "RuntimeError: no"}, {"finished": False}])
def test_what_broke_or_was_cut_is_tried_again(tmp_path: Path, result: dict[str, bool] | dict[str, str]) -> None:
    journal = Journal(tmp_path, {"card": "A"})
    journal.write("x", result)
    journal.write("y", {"did not fit": "out of memory"})
    again = Journal(tmp_path, {"card": "A"})
    assert not again.done("x")
    assert again.done("y")
    assert not again.done("z")


def test_results_of_two_cards_are_not_mixed(tmp_path: Path) -> None:
    Journal(tmp_path, {"card": "A"}).write("x", {"left out": "no room"})
    with pytest.raises(SystemExit, match="name another --out"):
        Journal(tmp_path, {"card": "B"})


def test_a_prompt_gets_half_more_time_than_its_last_chunks_would_take() -> None:
    sizes = gpu_sizes.Sizes()
    known = {"llama 131072 plain": {"prefill_chunk_ms": 500.0}}
    most = [gpu_needs.prefill_s("llama", 131072, kind, known, sizes) for kind in gpu_sizes.PREFILLS]
    measured = gpu_needs.START_S + 128 * 0.75
    assert most == [gpu_needs.PREFILL_S, measured, measured, gpu_needs.PREFILL_S]


def test_a_cuda_device_that_is_not_there() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit, match="sees no CUDA device"):
        gpu.main(["--quick"])
