"""What appending costs in decode: its share of the whole model's step, and the slowest step, over 10,000 steps.

The cache starts with random keys and values (see `fill`) and a RAM budget that its cold pages already fill, so that the
steps evict, index and spill. A page leaves the hot window whole, at the end of an `attend`: what that takes longer than
the median `attend` counts as appending. A step that the OS interrupts is slow through no fault of the cache: each
step's CPU time is recorded beside its wall-clock time, and both are compared with their medians.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import numpy as np
from kiv_hf import KIVConfig
from tqdm import tqdm

from .fill import fill, measure_spreads
from .models import kjv_tokens
from .options import parse, parser
from .report import Result, quantile_panel, quantiles
from .subjects import Clocks, Factory
from .timing import quiet

if TYPE_CHECKING:
    import argparse

    from matplotlib.figure import Figure

K = 1024
WARMUP_STEPS = 20
SHARE_LIMIT = 0.015
SLOWEST_LIMIT = 2.0


def measure(options: argparse.Namespace, result: Result) -> None:
    """Run the steps and fill `result`."""
    factory = Factory("gemma", options.impl)
    ids = kjv_tokens("gemma", 4 * K)
    spreads = measure_spreads(factory.model, ids[:, :512])
    ram_bytes = None if options.ram_mib is None else options.ram_mib * 2**20
    subject = factory.kiv("KIV", KIVConfig(ram_bytes=ram_bytes))
    fill(subject, spreads, ids, options.context, options.seed)
    before = subject.cache.memory()
    wall, cpu, append, attend, hot = (np.zeros(options.steps) for _ in range(5))
    with quiet(), Clocks(subject) as clocks:
        for number in tqdm(range(-WARMUP_STEPS, options.steps), desc="decode steps", disable=None):
            token = ids[:, number % ids.shape[1]][None]
            clocks.read()
            start, start_cpu = time.perf_counter(), time.process_time()
            subject.step(token)
            if number >= 0:
                wall[number], cpu[number] = time.perf_counter() - start, time.process_time() - start_cpu
                append[number], attend[number] = clocks.read()
                hot[number] = subject.cache.tokens().hot
    after = subject.cache.memory()
    evicting = np.diff(hot, prepend=hot[0]) < 0
    parts = {"whole step": wall, "its CPU time": cpu, "append": append, "attend": attend}
    if evicting.any():
        parts["attend where a page becomes cold"] = attend[evicting]
    _tabulate(parts, result)
    result.notes.append(
        f"Bytes by tier before the steps: {before}; after them: {after}. So {after.disk - before.disk:,} bytes were "
        f"spilled to disk; {int(evicting.sum())} steps evicted and indexed a page in each KIV layer."
    )
    result.series["quantiles, ms"] = {name: quantiles((1e3 * taken).tolist()) for name, taken in parts.items()}
    subject.close()


def _tabulate(parts: dict[str, np.ndarray], result: Result) -> None:
    table = result.table(
        "A step, ms", "what", "median", "mean", "p99", "p99.9", "slowest", "slowest ÷ median", "steps above 2 medians"
    )
    for name, taken in parts.items():
        median = statistics.median(taken)
        above = int((taken > SLOWEST_LIMIT * median).sum())
        slow = (1e3 * float(np.quantile(taken, share)) for share in (0.99, 0.999))
        table.add(
            *(name, 1e3 * median, 1e3 * float(taken.mean()), *slow, 1e3 * float(taken.max())),
            *(float(taken.max()) / median, above),
        )
    wall, cpu, append, attend, *evicting = parts.values()
    eviction = sum(float((taken - statistics.median(attend)).sum()) for taken in evicting)
    share = (float(append.sum()) + eviction) / float(wall.sum())
    result.target("append and eviction, share of the step", SHARE_LIMIT, share)
    result.target("slowest step ÷ median", SLOWEST_LIMIT, float(wall.max()) / statistics.median(wall))
    rest = wall - append
    worst = int(wall.argmax())
    result.notes.append(
        f"The slowest step is number {worst}: {1e3 * wall[worst]:.1f} ms, of them {1e3 * append[worst]:.2f} in append; "
        f"it used {1e3 * cpu[worst]:.1f} ms of CPU time. Without append the slowest step would be "
        f"{rest.max() / statistics.median(rest):.2f} times the median."
    )


def draw(figure: Figure, result: Result) -> None:
    """Draw how long steps and their parts take, by quantiles."""
    panel = figure.subplots()
    quantile_panel(panel, result.series["quantiles, ms"])
    panel.set(yscale="log", title=result.title)


def main(argv: list[str] | None = None) -> Result:
    """Run the benchmark."""
    made = parser("append", __doc__)
    made.add_argument("--steps", type=int, default=10_000)
    made.add_argument("--context", type=int, default=128 * K, help="tokens in the cache before the first step")
    made.add_argument("--ram-mib", type=int, default=256, help="ram_bytes in MiB")
    options = parse(made, argv)
    if options.quick:
        options.steps, options.context, options.ram_mib = 40, 4 * K, None
    settings = {"impl": options.impl, "steps": options.steps, "context": options.context, "ram MiB": options.ram_mib}
    result = Result("append", "Appending in decode, Gemma 3 270M bfloat16", settings)
    measure(options, result)
    result.write(options.out, draw)
    print(result.markdown())
    return result
