"""``python -m benchmarks.draw [folder]``: make tables and pictures anew from the JSON of results."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from . import NAMES
from .options import RESULTS
from .report import Result

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

FIDELITY = {"long": "long.picture", "retention": "long.retention_part"}
"""Part of fidelity -> its module with ``draw``."""


def painter(name: str) -> Callable[[Figure, Result], None]:
    """Return the function that draws the result of a name."""
    part = name.removeprefix("fidelity_")
    if part == name:
        module = f".{max((known for known in NAMES if name.startswith(known)), key=len)}"
    else:
        module = f".fidelity.{FIDELITY[part]}"
    return importlib.import_module(module, __package__).draw


def draw_all(folder: Path) -> None:
    """Write Markdown and pictures of every result in `folder`."""
    for path in sorted(folder.glob("*.json")):
        Result.read(path).write(folder, painter(path.stem))


if __name__ == "__main__":
    draw_all(Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS)
