"""``python -m benchmarks.fidelity [part ...]``: every part by default; JSON, Markdown and a PNG for each."""

from __future__ import annotations

import argparse
import importlib
import sys
import time

from benchmarks.draw import painter
from benchmarks.models import MODELS
from benchmarks.options import parse, parser

from .long import plan as long_plan

PARTS = {
    "long": ("long.part", long_plan.HOT_TOKENS),
    "retention": ("long.retention_part", long_plan.HOT_TOKENS),
}
"""Name of a part -> its module, which has ``run(options) -> Result``, and the models it asks."""


def main() -> None:
    """Run the parts that the command line names."""
    made = parser("fidelity", __doc__)
    made.add_argument("parts", nargs="*", metavar="part", help=f"any of {', '.join(PARTS)} (default: all)")
    made.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), help="default: a part's own")
    made.add_argument("--longest", type=int, help="leave out longer contexts, in tokens")
    made.add_argument("--captured", action="store_true", help="of `long`: leave out what no model has read so far")
    options = parse(made, None)
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        made.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    for part in options.parts or PARTS:
        start = time.perf_counter()
        name, asked = PARTS[part]
        module = importlib.import_module(f".{name}", __package__)
        result = module.run(argparse.Namespace(**vars(options) | {"models": [m for m in options.models if m in asked]}))
        result.settings["seconds"] = round(time.perf_counter() - start)
        result.write(options.out, painter(result.name))
        print(f"{part}: {result.settings['seconds']} s, {options.out / result.name}.md", file=sys.stderr)


if __name__ == "__main__":
    main()
