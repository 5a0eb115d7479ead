"""The run on a GPU: the whole of it at tiny sizes on a CPU, and the order of its stages."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from kiv_reference.errors import KIVUnsupportedError

from benchmarks import gpu, gpu_sizes
from benchmarks.gpu_journal import Journal
from benchmarks.gpu_stages import IMPLEMENTATIONS, stages
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


def test_a_cuda_device_that_is_not_there() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit, match="sees no CUDA device"):
        gpu.main(["--quick"])
