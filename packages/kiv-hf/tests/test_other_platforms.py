"""The three packages where Windows and macOS lack modules and calls: imported, and a store on disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="takes away what Linux has")
@pytest.mark.parametrize("system", ["macos", "windows"])
def test_every_module_is_imported_and_pages_go_to_disk(system: str, tmp_path: Path) -> None:
    program = Path(__file__).with_name("other_platform.py")
    command = [sys.executable, str(program), system, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 120
