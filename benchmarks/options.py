"""The command line that all benchmarks share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from kiv_hf import KIVConfig

RESULTS = Path(__file__).resolve().parent / "results"
QUICK = {"hot_tokens": 256, "page_tokens": 64, "candidate_tokens": 128, "retrieve_tokens": 64}
"""Budgets of a quick run, which short texts outgrow."""


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Build the parser of ``python -m benchmarks.<name>``; `description` is the module's docstring."""
    made = argparse.ArgumentParser(
        prog=f"benchmarks {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    made.add_argument("--impl", default="fast", choices=("fast", "reference"), help="the implementation of KIV")
    made.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch (default: all cores)")
    made.add_argument("--seed", type=int, default=0, help="seed of the random keys and values")
    made.add_argument("--out", type=Path, help=f"folder of the results (default: {RESULTS}, or quick/ in it)")
    return made


def parse(made: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """Parse `argv` and set the number of threads."""
    options = made.parse_args(argv)
    if options.out is None:
        options.out = RESULTS / "quick" if options.quick else RESULTS
    torch.set_num_threads(options.threads)
    return options


def config(options: argparse.Namespace, **fields: Any) -> KIVConfig:
    """Return KIV's configuration: the defaults, or with --quick small budgets, but for `fields`."""
    small: dict[str, Any] = QUICK if options.quick else {}
    return KIVConfig(**(small | fields))
