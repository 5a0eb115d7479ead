"""A million tokens under a RAM budget of 512 MiB, the rest on disk, against the same tokens all in RAM.

Each runs in a process of its own, so that the OS can tell their memory apart; the two processes decode in turns on the
same tokens. Logits must be bit-identical.
"""

from __future__ import annotations

import gc
import hashlib
import multiprocessing
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from kiv_hf import KIVConfig

from .fill import fill, measure_spreads
from .machine import process_bytes
from .models import kjv_tokens
from .options import parse, parser
from .report import Result, quantile_panel, quantiles, short
from .subjects import PROMPT_TOKENS, Factory
from .timing import interleave, median_ms, quiet, seconds

if TYPE_CHECKING:
    import argparse
    from collections.abc import Generator
    from multiprocessing.connection import Connection

    from matplotlib.figure import Figure

K = 1024
MiB = 2**20
ROUNDS, WARMUP = 60, 20
SLOWDOWN_LIMIT = 1.15
MEMORY_LIMIT = 1.10


def serve(connection: Connection, options: argparse.Namespace, ram_bytes: int | None) -> None:
    """Fill a cache and answer the parent's requests for steps; runs in a process of its own."""
    torch.set_num_threads(options.threads)
    factory = Factory("gemma", options.impl)
    ids = kjv_tokens("gemma", 4 * K)
    spreads = measure_spreads(factory.model, ids[:, :512])
    warm = factory.kiv("warm")
    warm.step(ids[:, :PROMPT_TOKENS])
    warm.step(ids[:, :1])
    warm.close()
    gc.collect()
    connection.send(process_bytes())  # the model and all libraries, no cache
    subject = factory.kiv("KIV", KIVConfig(ram_bytes=ram_bytes, spill_dir=options.spill_dir))
    elapsed = seconds(lambda: fill(subject, spreads, ids, options.context, options.seed))
    connection.send((elapsed, subject.cache.memory()))
    digest = hashlib.sha256()
    with quiet():
        while (number := connection.recv()) is not None:
            logits: list[torch.Tensor] = []
            token = ids[:, number % ids.shape[1]][None]
            taken = seconds(lambda token=token, logits=logits: logits.append(subject.step(token)))
            digest.update(logits[0].view(torch.uint8).numpy().tobytes())
            connection.send((taken, digest.hexdigest()))
    connection.send((process_bytes(), subject.cache.memory()))
    subject.close()


@contextmanager
def worker(options: argparse.Namespace, ram_bytes: int | None) -> Generator[Connection]:
    """Start a process that runs `serve`; yields the parent's end of the pipe."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, options, ram_bytes), daemon=True)
    process.start()
    theirs.close()
    try:
        yield mine
    finally:
        mine.close()
        process.join(timeout=60)
        if process.is_alive():
            process.terminate()


def measure(options: argparse.Namespace, result: Result) -> None:
    """Run both processes and fill `result`."""
    ram_bytes = options.ram_mib * MiB
    with worker(options, None) as in_ram, worker(options, ram_bytes) as spilled:
        ends = {"all in RAM": in_ram, "spilled": spilled}
        bare = {name: end.recv() for name, end in ends.items()}
        filled = {name: end.recv() for name, end in ends.items()}
        answers: dict[str, list[Any]] = {name: [] for name in ends}

        def step(name: str, number: int) -> None:
            ends[name].send(number)
            answers[name].append(ends[name].recv())

        rounds, warmup = (3, 2) if options.quick else (ROUNDS, WARMUP)
        interleave({name: lambda n, name=name: step(name, n) for name in ends}, rounds, warmup)
        for end in ends.values():
            end.send(None)
        last = {name: end.recv() for name, end in ends.items()}
    identical = [answer[1] for answer in answers["all in RAM"]] == [answer[1] for answer in answers["spilled"]]
    if not identical:
        raise AssertionError("logits under the RAM budget differ from those without it (SPEC 10.1)")
    taken = {name: [answer[0] for answer in answers[name][warmup:]] for name in ends}
    table = result.table(
        f"{short(options.context)} tokens, Gemma 3 270M bfloat16",
        *("", "step, ms (median)", "slowest step, ms", "fill, s", "process before, MB", "process, MB"),
        *("of it anonymous, MB", "peak, MB", "device, MB", "RAM, MB", "disk, MB"),
    )
    for name in ends:
        process, memory = last[name]
        table.add(
            *(name, median_ms(taken[name]), 1e3 * max(taken[name]), filled[name][0]),
            *(part / 1e6 for part in (bare[name].rss, process.rss, process.anonymous, process.peak, *memory)),
        )
    ratio = median_ms(taken["spilled"]) / median_ms(taken["all in RAM"])
    allowed = ram_bytes + bare["spilled"].rss
    result.target("warm decode, spilled ÷ all in RAM", SLOWDOWN_LIMIT, ratio)
    result.target("process memory ÷ (ram_bytes + model)", MEMORY_LIMIT, last["spilled"][0].rss / allowed)
    steps = len(answers["spilled"])
    result.notes.append(
        f"Logits of all {steps} steps are bit-identical in the two processes (SHA-256). Process memory is the resident "
        "set, mapped files included; the model is that of the same process before it made the cache. On a CPU the "
        "device tier is RAM too: it is part of the process, and not of ram_bytes."
    )
    ms = {name: quantiles([1e3 * seconds for seconds in times]) for name, times in taken.items()}
    result.series["quantiles, ms"] = ms


def draw(figure: Figure, result: Result) -> None:
    """Draw how long steps of both runs take, and memory by tier."""
    times, memory = figure.subplots(1, 2)
    quantile_panel(times, result.series["quantiles, ms"])
    times.set(title="Decode, in turns", ylim=(0, None))
    rows: list[Any] = list(result.tables[0].rows)
    bottom = [0.0] * len(rows)
    for column, tier in ((8, "device"), (9, "RAM"), (10, "disk")):
        part = [row[column] for row in rows]
        memory.bar([row[0] for row in rows], part, bottom=bottom, label=tier)
        bottom = [low + more for low, more in zip(bottom, part, strict=True)]
    memory.set(ylabel="MB", title="The cache by tier")
    memory.legend()


def main(argv: list[str] | None = None) -> Result:
    """Run the benchmark."""
    made = parser("spill", __doc__)
    made.add_argument("--context", type=int, default=1024 * K, help="tokens in the cache")
    made.add_argument("--ram-mib", type=int, default=512, help="ram_bytes in MiB")
    made.add_argument("--spill-dir", help="folder of the disk tier (default: the system's)")
    options = parse(made, argv)
    if options.quick:
        options.context, options.ram_mib = 16 * K, 16
    settings = {"impl": options.impl, "context": options.context, "ram MiB": options.ram_mib}
    result = Result("spill", "Decode with most of the cache on disk", settings)
    measure(options, result)
    result.write(options.out, draw)
    print(result.markdown())
    return result
