"""Everything that needs a GPU, offline, within a number of minutes: ``python -m benchmarks.gpu``.

``kiv doctor``, by what steps are computed, conformance on the device, and decode and prefill of three geometries of
random weights against context, under KIV and under other caches, beside what was to be reached and what was predicted.
What is done is written at once, and a second run goes on from there.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .gpu_journal import Cut, Journal
from .gpu_stages import stages
from .gpu_tables import markdown
from .timing import quiet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .gpu_stages import Stage

RESULTS = Path(__file__).resolve().parent / "results" / "gpu"
AGAIN = 75
"""Exit code when something is left for another run: "try again", as systems have it."""

LEAST_S = 10.0
"""With less than this nothing is begun that takes what is left."""


def perform(listed: Sequence[Stage], journal: Journal, seconds: float) -> int:
    """Do what is not done and fits into the time, what was never tried first; return the exit code."""
    end = time.monotonic() + seconds
    for stage in sorted(listed, key=lambda stage: bool(journal.found(stage.name))):
        left = end - time.monotonic()
        most = stage.most_s()
        if journal.done(stage.name) or (LEAST_S if most is None else most) > left:
            continue
        most = left if most is None else most
        print(f"{stage.name}: at most {most:.0f} s, of {left:.0f}", file=sys.stderr, flush=True)
        journal.write(stage.name, carried_out(stage, most))
    print(markdown(journal.content))
    names = dict.fromkeys(stage.name for stage in listed)
    left = [name for name in names if not journal.found(name) or not journal.found(name).get("finished", True)]
    if left:
        print(f"Left for another run of the same command: {', '.join(left)}.")
        return AGAIN
    return 0 if all(well(journal.found(name)) for name in names) else 1


def carried_out(stage: Stage, most_s: float) -> dict[str, Any]:
    """Return what a stage finds; one that breaks, or is cut, is a result like others."""
    begin = time.monotonic()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", RuntimeWarning)  # as that memory could not be pinned
        try:
            with quiet():
                result = stage.run(begin + most_s)
        except Cut:
            result = {"error": f"not over after {most_s:.0f} s, the most that it gets"}
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"[:2000]}
    said = dict.fromkeys(str(one.message) for one in warned if issubclass(one.category, RuntimeWarning))
    told = {"warned": "; ".join(said)} if said else {}
    return {"took_s": round(time.monotonic() - begin, 1), **result, **told}


def well(result: dict[str, Any]) -> bool:
    """Tell whether a result is no failure; a missed target is none."""
    return "error" not in result and result.get("well", True) and not result.get("failed", 0)


def main(argv: list[str] | None = None) -> int:
    """Run it."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    made.add_argument("--minutes", type=float, default=8, help="begin nothing that could take longer (default: 8)")
    made.add_argument("--out", type=Path, help=f"folder of the results (default: one of the card's in {RESULTS})")
    made.add_argument("--device", default="cuda", help="cuda, or cpu to see that it runs")
    made.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    made.add_argument("--workers", type=int, help="processes of the conformance suite (default: 4, on a CPU 1)")
    options = made.parse_args(argv)
    cuda = options.device.startswith("cuda")
    if cuda and not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device here; --device cpu --quick shows that the benchmark runs")
    card = torch.cuda.get_device_name(options.device) if cuda else "CPU"
    device_bytes = torch.cuda.mem_get_info(options.device)[1] if cuda else 0
    options.workers = options.workers or (min(4, os.cpu_count() or 1) if cuda else 1)
    options.out = options.out or RESULTS / re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")
    run = {"card": card, "device_bytes": device_bytes, "quick": options.quick, "torch": torch.__version__}
    journal = Journal(options.out, run)
    return perform(list(stages(options, journal)), journal, 60 * options.minutes)


if __name__ == "__main__":
    sys.exit(main())
