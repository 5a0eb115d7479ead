"""What is asked of ``kiv`` before any work is answered without torch and transformers, on terminals of every width."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from subprocess import CompletedProcess
from typing import TYPE_CHECKING, Any

import kiv_hf
import pytest
import typer
from cli_models import save_llama
from kiv_hf.cli.app import app
from kiv_hf.cli.units import DTYPES

if TYPE_CHECKING:
    from pathlib import Path

HEAVY = ("torch", "transformers", "numpy", "psutil", "gguf")

PROGRAM = """
import sys
from kiv_hf.cli import main
try:
    main()
finally:
    print("imported:", sorted({name.split(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def kiv(monkeypatch: pytest.MonkeyPatch, *arguments: Any, columns: int = 80) -> CompletedProcess[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=1200)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["ask", "--help"],
        ["ask", "-m", "m", "-f", "/no/such/file", "Why?"],
        ["ask", "-m", "m", "-f", "f", "--ram-bytes", "many", "Why?"],
        ["ask", "-m", "m", "-f", "f", "--page-tokens", "0", "Why?"],
        ["plan", "--help"],
        ["plan", "-m", "m", "--context", "1000", "--device-memory", "much"],
        ["plan", "-m", "m", "--context", "1000", "--card", "Voodoo 2"],
        ["plan", "-m", "m", "--context", "1000", "--device-memory", "1GB", "--page-tokens", "0"],
    ],
)
def test_nothing_heavy_is_imported(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    ended = kiv(monkeypatch, *arguments)
    imported = re.search(r"imported: (\[.*\])", ended.stderr)
    assert imported is not None, ended.stderr
    assert ended.returncode == (2 if "-m" in arguments else 0)
    assert not [name for name in HEAVY if f"'{name}'" in imported[1]]


def test_a_run_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where nothing has imported transformers before: "kiv" is registered all the same."""
    (tmp_path / "text.txt").write_text("In the beginning.", encoding="utf-8")
    model = str(save_llama(tmp_path / "model"))
    ended = kiv(monkeypatch, "ask", "-m", model, "-f", str(tmp_path / "text.txt"), "--max-new-tokens", "2", "Why?")
    assert ended.returncode == 0, ended.stderr
    assert "What KIV held" in ended.stderr
    assert "What KIV held" not in ended.stdout


def test_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kiv_hf.__version__ == version("kiv-hf")
    assert kiv(monkeypatch, "--version").stdout == f"kiv {version('kiv-hf')}\n"


@pytest.mark.parametrize("command", ["ask", "plan"])
@pytest.mark.parametrize("columns", [30, 40, 60, 79, 80, 200])
def test_no_name_of_an_option_is_cut(monkeypatch: pytest.MonkeyPatch, columns: int, command: str) -> None:
    said = kiv(monkeypatch, command, "--help", columns=columns).stdout
    names = [
        name for parameter in typer.main.get_group(app).commands[command].params for name in parameter.opts
        if name.startswith("-")
    ]  # fmt: skip
    assert len(names) > 15
    assert [name for name in names if not re.search(rf"(?<!\S){name}(?![\w-])", said)] == []
    assert "…" not in said


@pytest.mark.parametrize(
    "lines",
    [
        "from kiv_hf import KIVCache",
        "from kiv_hf import use_kiv",
        "import kiv_hf; kiv_hf.KIVConfig",
        "import transformers, kiv_hf",
    ],
)
def test_using_the_package_registers_the_attention(lines: str) -> None:
    check = "from transformers import AttentionInterface, AttentionMaskInterface as Masks\n"
    check += "assert 'kiv' in AttentionInterface()\nassert 'kiv' in Masks()"
    ended = subprocess.run([sys.executable, "-c", f"{lines}\n{check}"], capture_output=True, text=True, timeout=1200)
    assert ended.returncode == 0, ended.stderr


def test_importing_the_package_alone_is_light() -> None:
    lines = "import sys, kiv_hf, kiv_reference.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", lines], timeout=1200, check=False).returncode == 0


def test_the_names_of_dtypes_are_those_of_torch() -> None:
    import torch

    assert all(isinstance(getattr(torch, name), torch.dtype) for name in DTYPES)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        kiv_hf.nothing  # noqa: B018
    assert {*kiv_hf.__all__, "__version__"} <= set(dir(kiv_hf))
