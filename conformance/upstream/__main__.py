"""Run the shapes for every class, or those named, and print a table: ``python -m conformance.upstream [CLASS...]``.

Ends with 1 if a call differs, if KIV refuses what `expected` does not list, or does not refuse what it lists.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from typing import TYPE_CHECKING

import torch
import transformers

from .expected import CLASSES, SHORT
from .shadow import Row, run_class

if TYPE_CHECKING:
    from collections.abc import Iterable

HEAD = ("class", "compared", "equal", "refused", "neither can", "result")


def rows(names: Iterable[str]) -> list[Row]:
    """Run every class, with a line when it is done; one that breaks is wrong, and the others run all the same."""
    done: list[Row] = []
    for name in names:
        start = time.perf_counter()
        try:
            done.append(run_class(name))
        except Exception as error:  # the harness itself cannot run the class
            done.append(Row(name, wrong=[f"could not be run: {type(error).__name__}: {error}"]))
        row = done[-1]
        print(f"{name}: {row.equal} of {row.compared} equal, {time.perf_counter() - start:.1f} s", flush=True)
    return done


def table(done: list[Row]) -> str:
    """Return the numbers of each class and their sums, then what is wrong, and why KIV refuses what it may."""
    numbers = [(r.compared, r.equal, r.refused, r.neither) for r in done]
    cells = [(r.name, *n, "WRONG" if r.wrong else "ok") for r, n in zip(done, numbers, strict=True)]
    sums = [sum(column) for column in zip(*numbers, strict=True)]
    total = (f"{len(done)} classes", *sums, "WRONG" if any(r.wrong for r in done) else "ok")
    lines = [[str(cell) for cell in line] for line in (HEAD, *cells, total)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    text += [f"{r.name}: {count} {why}" for r in done for why, count in r.reasons.items()]
    return "\n".join(text + [f"WRONG {r.name}: {what}" for r in done for what in r.wrong])


def main(arguments: list[str] | None = None) -> int:
    """Return 0 if every class is as expected."""
    parser = argparse.ArgumentParser(prog="upstream", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--short", action="store_true", help=f"only {', '.join(SHORT)}")
    parser.add_argument("classes", nargs="*", help="names of transformers' classes instead of the chosen ones")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    done = rows(options.classes or (SHORT if options.short else CLASSES))
    print(f"\n{table(done)}")
    return int(any(row.wrong for row in done))


if __name__ == "__main__":
    sys.exit(main())
