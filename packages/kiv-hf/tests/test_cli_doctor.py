"""``kiv doctor``: what it checks, what it says where something is not well, and its exit code; never a time."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from kiv_fast.memory.pinning import CudaRuntime, SlabPinning
from kiv_fast.ops import library
from kiv_fast.store import FastStore
from kiv_hf.cli.app import app
from kiv_hf.cli.doctor import checks, machine, stores, times
from kiv_hf.cli.doctor.finding import Finding, examine
from typer.testing import CliRunner, Result

if TYPE_CHECKING:
    from pathlib import Path

CPU = torch.device("cpu")

NAMES = [
    "torch", "transformers", "device", "operations", "memory", "pinned quota", "direct reads", "fused attention",
    "store in float32", "store in bfloat16", "store in float16", "store in float64",
    "step at 4K", "step at 16K", "step at 64K",
]  # fmt: skip


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(times.CONTEXTS, "cpu", (1024, 2048, 8192))
    monkeypatch.setattr(times, "ROUNDS", 2)
    monkeypatch.setattr(stores, "CALLS", (260, 1, 20, 1))


def run(*arguments: Any) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["doctor", *arguments])


def test_all_that_it_checks() -> None:
    assert [name for name, _, _ in checks(CPU)] == NAMES
    on_a_gpu = [name for name, _, _ in checks(torch.device("cuda"))]
    assert on_a_gpu == [*NAMES[:-3], "step at 4K", "step at 32K", "step at 128K"]


def test_it_checks_retrieval(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In calls of several queries and of one; a step of the longest context retrieves as well."""
    modes = []

    def attend(self: Any, query: torch.Tensor, *, attend: Any = FastStore.attend, **keywords: Any) -> Any:
        output = attend(self, query, **keywords)
        modes.append({block.mode for block in self.report.blocks})
        return output

    monkeypatch.setattr(FastStore, "attend", attend)
    assert stores.compare("store", torch.float32, CPU).well
    assert {"exact", "retrieve"} in modes
    assert modes[-1] == {"retrieve"}
    times.measure("step", times.CONTEXTS["cpu"][-1], times.GEOMETRY["cpu"], CPU)
    assert modes[-1] == {"retrieve"}


def test_a_well_machine(quick: None) -> None:
    result = run("--json", "--device", "cpu")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["well"]
    assert found["device"] == "cpu"
    assert [finding["name"] for finding in found["findings"]] == [*NAMES[:-3], "step at 1K", "step at 2K", "step at 8K"]
    assert all(finding["value"] and finding["well"] and not finding["reason"] for finding in found["findings"])


def test_the_table_has_every_check(quick: None) -> None:
    said = run("--device", "cpu").stdout
    assert [name for name in [*NAMES[:-3], "KIV", "plain", "all is well"] if name not in said] == []
    assert said.count("│ well") == len(NAMES)


def test_wrong_numbers_are_found_with_a_reason_and_a_remedy(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    attend = FastStore.attend

    def off(self: Any, query: torch.Tensor, **keywords: Any) -> torch.Tensor:
        output = attend(self, query, **keywords)
        return output * 1.5 if query.dtype == torch.float16 else output

    monkeypatch.setattr(FastStore, "attend", off)
    result = run("--json", "--device", "cpu")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert not found["well"]
    (wrong,) = [finding for finding in found["findings"] if not finding["well"]]
    assert wrong["name"] == "store in float16"
    assert "SPEC 5.1: another output" in wrong["reason"]
    assert "Do not use this dtype" in wrong["remedy"]


def test_a_check_that_raises_is_a_finding_and_the_others_go_on(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: out of order\nmore")

    monkeypatch.setattr(times, "FastPool", broken)
    result = run("--device", "cpu")
    assert result.exit_code == 1
    assert result.stdout.count("not well") == 3
    assert "RuntimeError: CUDA error: out of order. Free memory" in result.stdout
    assert "not all is well" in result.stdout


def test_a_warning_is_a_reason() -> None:
    def check() -> Finding:
        warnings.warn("host memory is not pinned from here on", RuntimeWarning, stacklevel=2)
        return Finding("pinned quota", "1 GB")

    found = examine("pinned quota", check, "Raise the limit.")
    expected = Finding("pinned quota", "1 GB", False, "host memory is not pinned from here on.", "Raise the limit.")
    assert found == expected


def test_memory_that_cannot_be_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(CudaRuntime):
        def register(self, address: int, nbytes: int) -> None:
            raise RuntimeError("operation not permitted")

        def unregister(self, address: int) -> None:
            raise AssertionError("nothing was registered")

    monkeypatch.setattr(machine, "pinning_for", lambda device: SlabPinning(Refusing(device), 1 << 30))
    by_name = {name: (check, remedy) for name, check, remedy in checks(torch.device("cuda"))}
    found = examine("pinned quota", *by_name["pinned quota"])
    assert not found.well
    assert "operation not permitted" in found.reason
    assert "ulimit -l" in found.remedy


def test_a_card_that_torch_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = machine.torch_build(CPU)
    assert not found.well
    assert "torch sees no CUDA device" in found.reason
    assert "driver" in found.remedy


def test_without_compiled_operations_it_is_well_and_slower(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KIV_LIBRARY", str(tmp_path / "libkiv.so"))
    monkeypatch.setattr(library, "load", library.load.__wrapped__)
    found = machine.operations(CPU)
    assert found.well
    assert found.value.startswith("torch, slower")
    assert "without a C compiler" in found.value


def test_operations_that_do_not_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "libkiv.so").write_text("no library")
    monkeypatch.setenv("KIV_LIBRARY", str(tmp_path / "libkiv.so"))
    monkeypatch.setattr(library, "load", library.load.__wrapped__)
    found = machine.operations(CPU)
    assert not found.well
    assert "does not load" in found.reason
    assert "a wheel for this system" in found.remedy


@pytest.mark.parametrize(
    ("device", "installed", "value"),
    [
        ("cuda", True, "triton (decode), torch"),
        ("cuda", False, "torch: Triton is not installed"),
        ("mps", True, "torch: Triton does not compile for 'mps'"),
    ],
)
def test_operations_of_a_device(monkeypatch: pytest.MonkeyPatch, device: str, installed: bool, value: str) -> None:
    monkeypatch.setattr("kiv_fast.ops.triton.find_spec", lambda name: object() if installed else None)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # which tests set, and with which Triton serves any device
    found = machine.operations(torch.device(device))
    assert found.well
    assert found.value == value


def test_another_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.__version__", "4.50.0")
    monkeypatch.setattr("kiv_hf._transformers.check_version.__defaults__", ("4.50.0",))
    found = machine.transformers_version()
    assert not found.well
    assert "pip install 'transformers>=" in found.reason


def test_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    little = SimpleNamespace(available=1 << 29, total=1 << 32)
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: little)
    found = machine.memory(CPU)
    assert not found.well
    assert "RAM" in found.reason


def test_the_plain_cache_is_full_attention() -> None:
    torch.manual_seed(0)
    plain = times.PlainCache()
    for tokens in (5, 1):
        plain.append(torch.randn(1, 2, tokens, 4), torch.randn(1, 2, tokens, 4))
    query = torch.randn(1, 4, 1, 4)
    assert plain.key is not None
    assert plain.value is not None
    key, value = (tensor.repeat_interleave(2, dim=1) for tensor in (plain.key, plain.value))
    expected = torch.softmax(0.5 * query @ key.transpose(2, 3), dim=3) @ value
    torch.testing.assert_close(plain.attend(query, scale=0.5), expected)


def test_no_such_device() -> None:
    result = run("--device", "abacus")
    assert result.exit_code == 2
    assert "'abacus'" in result.stderr
    assert result.stdout == ""
