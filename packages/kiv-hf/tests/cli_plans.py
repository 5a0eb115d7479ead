"""``kiv plan`` as tests run it."""

from __future__ import annotations

import json
from typing import Any

from kiv_hf.cli.app import app
from typer.testing import CliRunner, Result

K = 1024
MACHINE = ["--device-memory", "12GB", "--ram", "64GB"]


def run(*arguments: Any, columns: int = 200) -> Result:
    """Run the command in a terminal of that width."""
    return CliRunner(env={"COLUMNS": str(columns)}).invoke(app, ["plan", *map(str, arguments)])


def planned(*arguments: Any, exit_code: int = 0) -> dict[str, Any]:
    """Return what the command tells programs."""
    result = run(*arguments, "--json")
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout)
