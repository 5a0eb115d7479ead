"""``python -m benchmarks.fidelity [part ...]``: every part by default; JSON, Markdown and a PNG for each."""

from __future__ import annotations

import importlib
import sys
import time

from benchmarks.models import MODELS
from benchmarks.options import parse, parser

PARTS = {
    "attention": "attention_level",
    "improvements": "improvements",
    "model": "model_level",
    "tasks": "task_tables",
    "rivals": "rivals",
}
"""Name of a part -> its module, which has ``run(options) -> Result`` and ``draw(result)``."""


def main() -> None:
    """Run the parts that the command line names."""
    made = parser("fidelity", __doc__)
    made.add_argument("parts", nargs="*", metavar="part", help=f"any of {', '.join(PARTS)} (default: all)")
    made.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), help="default: both")
    made.add_argument("--longest", type=int, help="leave out longer contexts of whole models, in tokens")
    options = parse(made, None)
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        made.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    for part in options.parts or PARTS:
        start = time.perf_counter()
        module = importlib.import_module(f".{PARTS[part]}", __package__)
        result = module.run(options)
        result.settings["seconds"] = round(time.perf_counter() - start)
        result.write(options.out, module.draw(result))
        print(f"{part}: {result.settings['seconds']} s, {options.out / result.name}.md", file=sys.stderr)


if __name__ == "__main__":
    main()
