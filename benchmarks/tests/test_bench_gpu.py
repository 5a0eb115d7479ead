"""The run on a GPU, at tiny sizes on a CPU: every stage has a result, and a second run goes on where one was cut."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch

from benchmarks import gpu, gpu_models, gpu_tests
from benchmarks.gpu_journal import Cut, Journal, markdown
from benchmarks.machine import ROOT
from benchmarks.profiled import counted

if TYPE_CHECKING:
    from pathlib import Path

CONTEXTS = gpu_models.QUICK_SIZES.contexts
MODELS = [f"{name} {at} {kind}" for name in gpu_models.QUICK for at in CONTEXTS for kind in ("kiv", "plain")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A whole run, in a process of its own: it has plugins and settings that tests must not see."""
    folder = tmp_path_factory.mktemp("gpu")
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--quick", "--out", str(folder)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder, ended


def stages_of(folder: Path) -> Any:
    return json.loads((folder / "gpu.json").read_text(encoding="utf-8"))["stages"]


def test_every_stage_has_a_result(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = finished
    found = stages_of(folder)
    assert list(found) == ["doctor", "conformance", *MODELS]
    assert found["doctor"]["well"]
    suite = found["conformance"]
    assert suite["finished"]
    assert suite["passed"] > 5
    assert suite["failed"] == 0
    for name in MODELS:
        result = found[name]
        assert "error" not in result
        assert len(result["steps_ms"]) == gpu_models.QUICK_SIZES.steps
        assert result["trace"]["operations"] > 0
        assert result["trace"]["launches"] == result["trace"]["waits"] == 0  # there is no GPU
        assert (result["read_a_step"].get("value_bytes_gathered", 0) > 0) == name.endswith("kiv")
    table = (folder / "gpu.md").read_text(encoding="utf-8")
    assert all(f"| {name} |" in table for name in MODELS)


def test_a_second_run_has_nothing_to_do(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = finished
    before = stages_of(folder)
    assert gpu.main(["--device", "cpu", "--quick", "--out", str(folder)]) == 0
    assert stages_of(folder) == before


def test_no_time_leaves_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--device", "cpu", "--quick", "--minutes", "0", "--out", str(tmp_path)]) == gpu.AGAIN
    assert "smollm2 512 kiv" in capsys.readouterr().out


def test_a_model_is_cut_between_steps() -> None:
    bench = gpu_models.Bench(torch.device("cpu"), gpu_models.QUICK_SIZES, time.monotonic())
    with pytest.raises(Cut):
        bench.measure(gpu_models.QUICK["smollm2"], 512, "kiv")


def test_what_does_not_fit_into_ram_is_said_before_it_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_models, "free_ram", lambda: 1000)
    bench = gpu_models.Bench(torch.device("cpu"), gpu_models.QUICK_SIZES, time.monotonic() + 60)
    assert "of RAM" in bench.measure(gpu_models.QUICK["smollm2"], 512, "kiv")["not run"]


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
    Journal(tmp_path, {"card": "A"}).write("x", {"not run": "no room"})
    with pytest.raises(SystemExit, match="name another --out"):
        Journal(tmp_path, {"card": "B"})


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
    found = gpu_tests.run(tmp_path, "cpu", 1, quick=True, limit_s=120)
    assert not found["finished"]
    assert "no-such-option" in found["error"]


def test_a_cuda_device_that_is_not_there() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit, match="sees no CUDA device"):
        gpu.main(["--quick"])


def test_counts_of_a_trace() -> None:
    events = [
        {"cat": "cpu_op", "name": "aten::mm"},
        {"cat": "kernel", "name": "gemm"},
        {"cat": "kernel", "name": "copy"},
        {"cat": "cuda_runtime", "name": "cudaStreamSynchronize"},
        {"cat": "cuda_runtime", "name": "cudaDeviceSynchronize"},
        {"cat": "cuda_runtime", "name": "cudaLaunchKernel"},
        {"cat": "gpu_memcpy", "name": "Memcpy HtoD (Pinned -> Device)", "args": {"bytes": 30}},
        {"cat": "gpu_memcpy", "name": "Memcpy HtoD (Pinned -> Device)", "args": {"bytes": 12}},
        {"ph": "M"},
    ]
    copied = {"copied_bytes HtoD (Pinned -> Device)": 42}
    assert counted(events) == {"operations": 1, "launches": 2, "waits": 1, **copied}


def test_a_table_says_what_was_not_run() -> None:
    stages = {"llama 4096 plain": {"did not fit": "CUDA out of memory"}, "models": {"error": "ImportError: no"}}
    said = markdown({"run": {"card": "A"}, "head": {}, "stages": stages})
    assert "| llama 4096 plain | did not fit: CUDA out of memory |" in said
    assert "- models: ImportError: no" in said
