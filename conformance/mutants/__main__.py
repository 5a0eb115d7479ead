"""``python -m conformance.mutants``: run the suite on every mutant, print the kill table, fail if one survives."""

from __future__ import annotations

import argparse
import sys
import time

import torch

from .. import profiles

profiles.load("kill")  # before the test modules are imported

from . import attention, estimate, fast, hf, index, report, retrieval, snapshots, state, widening  # noqa: E402
from .faulty import run_faults  # noqa: E402
from .patching import MUTANTS, Mutant  # noqa: E402
from .run import Death, first_failure, reference, without  # noqa: E402

LEAST = 25


def kill_table(mutants: list[Mutant]) -> dict[str, Death | None]:
    """Run the suite on each mutant, and print a line for it."""
    deaths: dict[str, Death | None] = {}
    print(f"{'mutant':52} {'killed by':58} {'SPEC':5} {'s':>5}  assertion")
    for one in mutants:
        with one.applied():
            death = deaths[one.name] = first_failure(reference(), one.look)
        if death is None:
            print(f"{one.name:52} SURVIVED", flush=True)
        else:
            test = death.test.replace("test_", "", 1)
            print(
                f"{one.name:52} {test[-58:]:58} {death.clause:5} {death.seconds:5.1f}  {death.assertion[:70]}",
                flush=True,
            )
    return deaths


def assertion_table(deaths: dict[str, Death | None], mutants: list[Mutant]) -> int:
    """Delete each assertion that killed first, and see which mutants live; how many assertions are needed."""
    needed = 0
    by_assertion: dict[str, list[Mutant]] = {}
    for one in mutants:
        death = deaths[one.name]
        if death is not None and death.clause:
            by_assertion.setdefault(death.assertion, []).append(one)
    print("\ndeleted assertion, and a mutant that then lives")
    for assertion, killed in sorted(by_assertion.items()):
        alive: str | None = None
        with without(assertion):
            for one in killed:
                with one.applied():
                    if first_failure(reference(), one.look) is None:
                        alive = one.name
                        break
        needed += alive is not None
        print(f"{assertion:60} {alive or 'none: another assertion catches them as well'}", flush=True)
    return needed


def main() -> int:
    """Exit status 0 if the unchanged reference lives and every mutant dies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="part of the names of the mutants to run")
    parser.add_argument("--assertions", action="store_true", help="also delete each assertion in turn (slow)")
    parser.add_argument("--target", choices=["reference", "fast", "hf"], default="reference", help="what gets faults")
    parser.add_argument("--short", action="store_true", help="a sample: every fourth fault of fast or hf")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.target != "reference":
        return run_faults({"fast": fast, "hf": hf}[options.target].FAULTS, options.only or "", options.short)
    start = time.perf_counter()
    chosen = [m for m in MUTANTS if not options.only or options.only in m.name]
    control = first_failure(reference()) if not options.only else None
    if not options.only:
        print("the unchanged reference", "lives" if control is None else f"FAILS: {control}", flush=True)
    deaths = kill_table(chosen)
    survivors = [name for name, death in deaths.items() if death is None]
    print(f"\n{len(deaths) - len(survivors)} of {len(deaths)} mutants killed in {time.perf_counter() - start:.0f} s")
    for name in survivors:
        print(f"survived: {name}")
    enough = bool(options.only) or len(deaths) >= LEAST
    shown = assertion_table(deaths, chosen) > 0 if options.assertions else True
    return 0 if control is None and not survivors and enough and shown else 1


__all__ = ["attention", "estimate", "fast", "hf", "index", "main", "report", "retrieval", "snapshots", "state"]
__all__ += ["widening"]

if __name__ == "__main__":
    sys.exit(main())
