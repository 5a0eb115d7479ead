"""The library of compiled operations is put in place whole: a process may load it while another builds it."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hatchling")


@pytest.fixture
def build() -> Any:
    spec = importlib.util.spec_from_file_location("hatch_build_tested", Path(__file__).parents[1] / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("fails", [False, True])
def test_the_library_is_replaced_whole(
    build: Any, tmp_path: Path, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there while the new one is linked, and stays where that fails."""
    target = tmp_path / "libkiv.so"
    target.write_text("old")
    seen: list[str] = []

    def compile_some(command: list[str], check: bool) -> None:
        assert check
        output = Path(command[command.index("-o") + 1])
        output.write_text("half")
        if "-shared" in command:
            seen.append(target.read_text())
            if fails:
                raise subprocess.CalledProcessError(1, command)
        output.write_text("new")

    monkeypatch.setattr(subprocess, "run", compile_some)
    if fails:
        with pytest.raises(subprocess.CalledProcessError):
            build.compile_library(tmp_path, target)
    else:
        build.compile_library(tmp_path, target)
    assert seen == ["old"]
    assert target.read_text() == ("old" if fails else "new")
    assert list(tmp_path.iterdir()) == [target]
