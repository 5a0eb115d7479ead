"""Timing side by side: what is to be compared takes turns in one process, so that noise falls on all alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager

import torch

Step = Callable[[int], object]
"""One step of a subject; its argument is the round, from 0."""


@contextmanager
def quiet() -> Generator[None]:
    """Keep garbage collection and autograd away while the clock runs."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        with torch.inference_mode():
            yield
    finally:
        if enabled:
            gc.enable()


def seconds(step: Callable[[], object]) -> float:
    """Return the wall-clock seconds of one call."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def interleave(steps: Mapping[str, Step], rounds: int, warmup: int) -> dict[str, list[float]]:
    """Run every step once a round, in an order that rotates, and time it.

    Returns
    -------
    name -> seconds of the `rounds` steps after the first `warmup` ones
    """
    taken: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    with quiet():
        for number in range(warmup + rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                elapsed = seconds(lambda step=steps[name], number=number: step(number))
                if number >= warmup:
                    taken[name].append(elapsed)
    return taken


def median_ms(taken: list[float]) -> float:
    """Return the median in milliseconds."""
    return 1e3 * statistics.median(taken)
