"""``python -m benchmarks <name> [options]``, or ``all`` for every one of them."""

from __future__ import annotations

import importlib
import sys
import time

from . import NAMES


def main() -> None:
    """Run the benchmarks that the command line names."""
    if len(sys.argv) < 2 or sys.argv[1] not in (*NAMES, "all"):
        sys.exit(f"{__doc__}\nNames: {', '.join(NAMES)}.")
    chosen = NAMES if sys.argv[1] == "all" else (sys.argv[1],)
    for name in chosen:
        start = time.perf_counter()
        importlib.import_module(f"benchmarks.{name}").main(sys.argv[2:])
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
