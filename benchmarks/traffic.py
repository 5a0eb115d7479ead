"""Bytes that a decode step brings to the device from RAM and disk, against what it had to bring.

What a step has to bring is in its report: keys of candidates, values of selected tokens (SPEC 9.6). What it did bring
is in the pool's counters. The original KIV's rule brings keys and values of the union, over query heads, of 32 pages
of 128 tokens. All of them decode the same tokens, over real text and over random contexts (see `fill`).
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .fill import fill, measure_spreads
from .models import MODELS, kjv_tokens
from .options import config, parse, parser
from .report import Result, short
from .subjects import Factory, Subject, chunks

if TYPE_CHECKING:
    import argparse

    import torch
    from matplotlib.figure import Figure

K = 1024
STEPS = 32
PREFILL_CHUNK = 1024
LIMIT = 1.24
COUNTED = ("key_bytes_gathered", "value_bytes_gathered", "streamed_bytes")
"""Counters of the fast pool that are bytes read from RAM or disk."""


@dataclass(frozen=True)
class Case:
    """A context on a model; `real` text is prefilled exactly, else keys and values are random."""

    model_name: str
    tokens: int
    real: bool


CASES = (
    Case("gemma", 16 * K, real=True),
    Case("smollm2", 8 * K, real=True),
    Case("gemma", 128 * K, real=False),
    Case("gemma", 1024 * K, real=False),
    Case("smollm2", 64 * K, real=False),
)
QUICK = (Case("gemma", 768, real=True), Case("gemma", 4 * K, real=False))


def counted_bytes(subject: Subject) -> int | None:
    """Count the cold bytes read so far, as the pool does; None for an implementation that does not count."""
    counters: Any = getattr(subject.cache.pool, "counters", None)
    return None if counters is None else sum(getattr(counters, name) for name in COUNTED)


def measure_case(case: Case, factory: Factory, result: Result, options: argparse.Namespace) -> None:
    """Decode `STEPS` tokens under KIV and under the original's rule, and add a row."""
    ids = kjv_tokens(case.model_name, max(4 * K, case.tokens + STEPS if case.real else 0))
    spreads = measure_spreads(factory.model, ids[:, :512])
    layers = 0
    needed: list[tuple[int, int]] = []
    read: list[int | None] = []
    original_bytes: list[int] = []
    for subject in (factory.kiv("KIV", config(options)), factory.original("original")):
        if case.real:
            for part in chunks(ids[:, : case.tokens], PREFILL_CHUNK):
                subject.step(part)
        else:
            fill(subject, spreads, ids, case.tokens, options.seed)
        layers = len(subject.cache.kiv_layers())
        for number in range(STEPS if not options.quick else 3):
            token = ids[:, (case.tokens + number) % ids.shape[1]][None]
            if subject.name == "KIV":
                needed.append(_step_needs(subject, token, read))
            else:
                before = subject.cache.pool.moved_bytes
                subject.step(token)
                original_bytes.append(subject.cache.pool.moved_bytes - before)
        subject.close()
    _tabulate(case, layers, needed, read, original_bytes, result)


def _step_needs(subject: Subject, token: torch.Tensor, read: list[int | None]) -> tuple[int, int]:
    """Step; returns the key and value bytes that it had to read, and appends to `read` what it did read."""
    before = counted_bytes(subject)
    subject.step(token)
    after = counted_bytes(subject)
    read.append(None if before is None or after is None else after - before)
    reports = subject.cache.reports().values()
    return sum(report.key_bytes for report in reports), sum(report.value_bytes for report in reports)


def _tabulate(
    case: Case,
    layers: int,
    needed: list[tuple[int, int]],
    read: list[int | None],
    original_bytes: list[int],
    result: Result,
) -> None:
    keys, values = (statistics.mean(parts) for parts in zip(*needed, strict=True))
    counted = [count for count in read if count is not None]
    mean_read = statistics.mean(counted) if counted else None
    ratio = None if mean_read is None else mean_read / (keys + values)
    original = statistics.mean(original_bytes)
    name = f"{MODELS[case.model_name].title}, {short(case.tokens)} {'real' if case.real else 'random'}"
    table = result.tables[0]
    table.add(
        *(name, layers, keys / 1e6, values / 1e6, None if mean_read is None else mean_read / 1e6, ratio),
        *(original / 1e6, original / (mean_read or keys + values)),
    )
    result.target(f"{name}: read ÷ needed", LIMIT, ratio)


def draw(figure: Figure, result: Result) -> None:
    """Draw megabytes a step, a group of bars a case."""
    panel = figure.subplots()
    rows: list[Any] = list(result.tables[0].rows)
    groups = (("needed", [row[2] + row[3] for row in rows]), ("read", [row[4] or 0 for row in rows]))
    for i, (label, heights) in enumerate((*groups, ("original KIV's rule", [row[6] for row in rows]))):
        panel.barh([n + 0.27 * i for n in range(len(rows))], heights, height=0.25, label=label)
    panel.set_yticks([n + 0.27 for n in range(len(rows))], [row[0] for row in rows])
    panel.set(xlabel="MB of cold keys and values a step", title=result.title)
    panel.invert_yaxis()
    panel.legend()


def main(argv: list[str] | None = None) -> Result:
    """Run the benchmark."""
    options = parse(parser("traffic", __doc__), argv)
    result = Result("traffic", "Cold bytes a decode step", {"impl": options.impl, "seed": options.seed})
    result.table(
        "Mean over the steps, all KIV layers together, MB",
        *("context", "KIV layers", "candidate keys", "selected values", "read", "read ÷ needed"),
        *("original KIV's rule", "original's ÷ ours"),
    )
    cases = QUICK if options.quick else CASES
    for model_name in dict.fromkeys(case.model_name for case in cases):
        factory = Factory(model_name, options.impl)
        for case in (case for case in cases if case.model_name == model_name):
            measure_case(case, factory, result, options)
            result.write(options.out, draw)
    print(result.markdown())
    return result
