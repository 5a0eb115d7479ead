"""Everything that needs a GPU, offline, within a number of minutes: ``python -m benchmarks.gpu``.

Conformance of the tiered implementation on the device, ``kiv doctor``, and decode and prefill of two geometries of
random weights against context. What is done is written at once, and a second run goes on from there.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from . import gpu_tests
from .gpu_journal import Cut, Journal, markdown
from .timing import quiet

RESULTS = Path(__file__).resolve().parent / "results" / "gpu"
AGAIN = 75
"""Exit code when something is left for another run: "try again", as systems have it."""

Stage = tuple[str, Callable[[], dict[str, Any]]]


def stages(options: argparse.Namespace, journal: Journal, end: float) -> Iterator[Stage]:
    """Yield what is to be done; the suite gets half of the time that is left, and what no one used at the end."""
    device = torch.device(options.device)

    def doctor() -> dict[str, Any]:
        from kiv_hf.cli.doctor import report

        return report(device, lambda name: None)

    def suite(share: float) -> dict[str, Any]:
        limit_s = share * (end - time.monotonic())
        return gpu_tests.run(journal.folder / "conformance", options.device, options.workers, options.quick, limit_s)

    yield "doctor", doctor
    yield "conformance", lambda: suite(0.5)
    yield from model_stages(options, device, end)
    yield "conformance", lambda: suite(1.0)


def model_stages(options: argparse.Namespace, device: torch.device, end: float) -> Iterator[Stage]:
    """Yield a stage for each geometry, context and cache, small contexts first."""
    try:
        from . import gpu_models
    except ImportError as error:  # transformers is not there, or not for this Python: all else goes on
        missing = f"{type(error).__name__}: {error}"
        yield "models", lambda: {"error": missing}
        return
    sizes = gpu_models.QUICK_SIZES if options.quick else gpu_models.Sizes()
    bench = gpu_models.Bench(device, sizes, end)
    for name, geometry in (gpu_models.QUICK if options.quick else gpu_models.GEOMETRIES).items():
        for tokens in sizes.contexts:
            for subject in ("kiv", "plain"):
                yield (
                    f"{name} {tokens} {subject}",
                    lambda geometry=geometry, tokens=tokens, subject=subject: bench.measure(geometry, tokens, subject),
                )


def perform(options: argparse.Namespace, journal: Journal) -> int:
    """Do what is not done until the time is over; return the exit code."""
    end = time.monotonic() + 60 * options.minutes
    for name, stage in stages(options, journal, end):
        if journal.done(name) or time.monotonic() > end:
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        begin = time.monotonic()
        try:
            with quiet():
                result = stage()
        except Cut:
            continue
        except Exception as error:  # one that breaks is a result like others, and the next ones go on
            result = {"error": f"{type(error).__name__}: {error}"[:2000]}
        journal.write(name, {"took_s": round(time.monotonic() - begin, 1), **result})
    names = list(dict.fromkeys(name for name, _ in stages(options, journal, end)))
    left = [name for name in names if name not in journal.content["stages"] or not journal.done(name)]
    print(markdown(journal.content))
    if left:
        print(f"Left for another run of the same command: {', '.join(left)}.")
        return AGAIN
    found = journal.content["stages"]
    return 0 if found["doctor"]["well"] and not found["conformance"]["failed"] else 1


def main(argv: list[str] | None = None) -> int:
    """Run it."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    made.add_argument("--minutes", type=float, default=8, help="after this many, begin nothing and cut what can be cut")
    made.add_argument("--out", type=Path, help=f"folder of the results (default: one of the card's in {RESULTS})")
    made.add_argument("--device", default="cuda", help="cuda, or cpu to see that it runs")
    made.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    made.add_argument("--workers", type=int, help="processes of the conformance suite (default: 4, on a CPU 1)")
    options = made.parse_args(argv)
    cuda = options.device.startswith("cuda")
    if cuda and not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device here; --device cpu --quick shows that the benchmark runs")
    card = torch.cuda.get_device_name(options.device) if cuda else "CPU"
    options.workers = options.workers or (min(4, os.cpu_count() or 1) if cuda else 1)
    options.out = options.out or RESULTS / re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")
    journal = Journal(options.out, {"card": card, "quick": options.quick, "torch": torch.__version__})
    return perform(options, journal)


if __name__ == "__main__":
    sys.exit(main())
