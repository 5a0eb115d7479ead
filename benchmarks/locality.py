"""How well a cache of rows on a device would do: keys of candidates and values of selected tokens, step after step.

Decode of real text, teacher-forced; what each step reads is what KIV's reports say, and the caches are simulated on it
(see `recency`), one for each KV head: C, 2 C or 4 C rows of keys and R, 2 R or 4 R rows of values. They are empty
before the first step; rates are of the steps after the warm-up. Seconds are bytes by 25 GB/s: predicted, no GPU is
asked. A result for each context; contexts of a million tokens are of the first layer with full attention alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from .fidelity.contexts import Context, System, asked
from .fidelity.long.figures import default_tokens
from .locality_reads import FirstGlobalLayer, HeadReads, Recording, decode, decode_layer
from .models import MODELS, kjv_tokens
from .options import QUICK, parse, parser
from .recency import Outcome, Policy, origins, simulate
from .report import Result, short

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from kiv_hf import KIVConfig
    from matplotlib.figure import Figure

K = 1024
FACTORS = (1, 2, 4)
BUS_GB_PER_S = 25
WARMUP, STEPS = 32, 96
LRU = Policy("rows")
POLICIES = (
    LRU,
    Policy("rows, sets of 8", ways=8),
    Policy("blocks of 4", 4),
    Policy("blocks of 8", 8),
    Policy("blocks of 16", 16),
)
AFTER = (2, 3, 5, 9, 17, 33)
"""Steps after a cold start, counted from 1, that are shown."""


@dataclass(frozen=True)
class Case:
    """A context on a model, and the shares of its cold tokens that are candidates, beside the default number."""

    model_name: str
    tokens: int
    shares: tuple[float, ...]
    one_layer: bool = False

    @property
    def name(self) -> str:
        """Of the result."""
        return f"{self.model_name}-{short(self.tokens)}"

    def configs(self, steps: int, *, quick: bool) -> Iterator[KIVConfig]:
        """Yield the default budgets, and for each share C with R in the defaults' proportion."""
        small: dict[str, Any] = QUICK if quick else {}
        default = asked(**small)
        yield default
        cold = default.cold_pages(self.tokens + steps) * default.page_tokens
        for share in self.shares:
            count = max(8, round(share * cold))
            yield asked(**small | {"candidate_tokens": count, "retrieve_tokens": default_tokens(count)})


CASES = (
    Case("smollm2", 8 * K, (0.25, 0.06, 0.016, 0.008)),
    Case("gemma", 8 * K, (0.25, 0.06)),
    Case("gemma", 32 * K, (0.25, 0.06, 0.016, 0.008)),
    Case("gemma", 128 * K, (0.016,), one_layer=True),
    Case("gemma", 1024 * K, (0.016,), one_layer=True),
)
QUICK_CASES = (Case("smollm2", K, (0.06,)), Case("gemma", 2 * K, (), one_layer=True))


@dataclass(frozen=True)
class Served:
    """What caches of keys and of values did for all heads, for one policy."""

    keys: list[Outcome]
    values: list[Outcome]


class Budget:
    """The reads of all heads under one C and R, and what caches make of them."""

    def __init__(self, config: KIVConfig, recording: Recording, warmup: int) -> None:
        assert config.retrieve_tokens is not None
        self.config = config
        self.cold_tokens = recording.cold_tokens
        self.heads = list(recording.heads.values())
        self.measured = slice(warmup, None)
        sizes = config.candidate_tokens, config.retrieve_tokens
        self._sizes = [[factor * size for factor in FACTORS] for size in sizes]
        self.served = {policy.name: self._serve(policy) for policy in tqdm(POLICIES, disable=None, leave=False)}

    def _serve(self, policy: Policy) -> Served:
        sizes_k, sizes_v = self._sizes
        return Served(
            [simulate(policy, head.candidates, sizes_k) for head in self.heads],
            [simulate(policy, head.selected, sizes_v) for head in self.heads],
        )

    def rates(self, outcomes: Sequence[Outcome], kind: str) -> np.ndarray:
        """Return hit rates of the measured steps, float64 [heads, sizes]."""
        wanted = [sum(rows.size for rows in getattr(head, kind)[self.measured]) for head in self.heads]
        return np.stack([o.hits[self.measured].sum(axis=0) for o in outcomes]) / np.array(wanted)[:, None]

    def mean_rate(self, outcomes: Sequence[Outcome], kind: str) -> list[float]:
        """Return the share of all rows wanted that caches of each size held."""
        wanted = np.array([sum(rows.size for rows in getattr(head, kind)[self.measured]) for head in self.heads])
        return (wanted @ self.rates(outcomes, kind) / wanted.sum()).tolist()

    def fetched_bytes(self, policy: Policy) -> np.ndarray:
        """Return bytes over the bus, all heads together, float64 [steps, sizes]."""
        served = self.served[policy.name]
        keys = sum(o.fetched * head.key_bytes for o, head in zip(served.keys, self.heads, strict=True))
        values = sum(o.fetched * head.value_bytes for o, head in zip(served.values, self.heads, strict=True))
        return np.asarray(keys + values, dtype=np.float64)

    def wanted_bytes(self) -> np.ndarray:
        """Return bytes that a step without a cache reads, all heads together, float64 [steps]."""

        def read(head: HeadReads) -> np.ndarray:
            pairs = zip(head.candidates, head.selected, strict=True)
            return np.array([k.size * head.key_bytes + v.size * head.value_bytes for k, v in pairs], dtype=np.float64)

        return np.sum([read(head) for head in self.heads], axis=0)

    def held_bytes(self) -> int:
        """Count the bytes of caches of C and R rows for all heads."""
        assert self.config.retrieve_tokens is not None
        sizes = self.config.candidate_tokens, self.config.retrieve_tokens
        return sum(sizes[0] * head.key_bytes + sizes[1] * head.value_bytes for head in self.heads)


def recordings(case: Case, options: argparse.Namespace, steps: int) -> Iterator[tuple[KIVConfig, Recording]]:
    """Yield what each budget of a case reads."""
    ids = kjv_tokens(case.model_name, case.tokens + steps)
    configs = case.configs(steps, quick=options.quick)
    if case.one_layer:
        layer = FirstGlobalLayer(case.model_name)
        after = layer.read(ids, case.tokens, case.tokens + steps)
        for config in configs:
            yield config, decode_layer(layer, ids, case.tokens, after, config, options.impl)
        return
    context = Context(case.model_name, ids[:, : case.tokens])
    for config in configs:
        system = System(f"C = {config.candidate_tokens}", config, options.impl)
        yield config, decode(context, system, ids[:, case.tokens :])
    context.close()


def measure(case: Case, options: argparse.Namespace) -> Result:
    """Measure one context, and write its result."""
    warmup, steps = (4, 4) if options.quick else (WARMUP, STEPS)
    settings = {"impl": options.impl, "text": "King James", "warm-up steps": warmup, "measured steps": steps}
    title = f"Locality of what a step reads: {MODELS[case.model_name].title}, {short(case.tokens)} tokens"
    result = Result(f"locality_{case.name}", title, settings)
    tables = [result.table(*part) for part in TABLES]
    for config, recording in recordings(case, options, warmup + steps):
        budget = Budget(config, recording, warmup)
        for table, rows in zip(tables, (reads_row, cache_rows, cold_row), strict=True):
            for row in rows(budget):
                table.add(*(float(f"{cell:.4g}") if isinstance(cell, float) else cell for cell in row))
        result.series[str(config.candidate_tokens)] = by_layer(budget)
        result.write(options.out, draw)
    layers = sorted({head.layer for head in budget.heads})
    result.settings["layers"] = f"{layers[0]} alone" if len(layers) == 1 else f"all {len(layers)} that retrieve"
    result.write(options.out, draw)
    return result


TABLES = (
    (
        "What a step reads, and which share of it earlier steps read",
        *("C", "R", "C ÷ cold tokens", "heads widened", "keys: step before", "last 4 steps", "any step"),
        *("values: step before", "last 4 steps", "any step", "MB a step", "ms at 25 GB/s"),
    ),
    (
        "Hit rates of caches for each KV head; MB a step over the bus; sizes: C and R rows, twice, four times as many",
        *("C", "cache of", "keys, C", "2 C", "4 C", "values, R", "2 R", "4 R", "worst head's keys, 2 C"),
        *("worst head's values, 2 R", "MB, ×1", "×2", "×4", "ms at 25 GB/s, ×2", "held, ×2, MB"),
    ),
    (
        "After a cold start: bytes over the bus as a share of the first step's, rows least recently used, 2 C and 2 R",
        *("C", "first step, MB", *(f"step {step}" for step in AFTER), "measured steps"),
    ),
)


def reads_row(budget: Budget) -> Iterator[tuple[Any, ...]]:
    """Yield the row of the first table."""
    config = budget.config
    shares = list[float]()
    for kind in ("candidates", "selected"):
        wanted = sum(rows.size for head in budget.heads for rows in getattr(head, kind)[budget.measured])
        found = [origins(getattr(head, kind)) for head in budget.heads]
        shares += [float(sum(part[budget.measured].sum() for part in parts) / wanted) for parts in zip(*found, strict=True)]
    blocks = sum(len(head.candidates) for head in budget.heads)
    widened = sum(head.widened for head in budget.heads) / blocks
    read = float(budget.wanted_bytes()[budget.measured].mean()) / 1e6
    share = config.candidate_tokens / budget.cold_tokens
    yield config.candidate_tokens, config.retrieve_tokens, share, widened, *shares, read, read / BUS_GB_PER_S


def cache_rows(budget: Budget) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of the second table."""
    for policy in POLICIES:
        served = budget.served[policy.name]
        kinds = (served.keys, "candidates"), (served.values, "selected")
        rates = [rate for outcomes, kind in kinds for rate in budget.mean_rate(outcomes, kind)]
        worst = [float(budget.rates(outcomes, kind)[:, 1].min()) for outcomes, kind in kinds]
        moved: list[float] = (budget.fetched_bytes(policy)[budget.measured].mean(axis=0) / 1e6).tolist()
        held = 2 * budget.held_bytes() / 1e6
        yield budget.config.candidate_tokens, policy.name, *rates, *worst, *moved, moved[1] / BUS_GB_PER_S, held


def cold_row(budget: Budget) -> Iterator[tuple[Any, ...]]:
    """Yield the row of the third table."""
    moved = budget.fetched_bytes(LRU)[:, 1]
    shares = [float(moved[step - 1] / moved[0]) if step <= len(moved) else None for step in AFTER]
    after = float(moved[budget.measured].mean() / moved[0])
    yield budget.config.candidate_tokens, float(moved[0]) / 1e6, *shares, after


def by_layer(budget: Budget) -> dict[str, list[float]]:
    """Return mean hit rates of each layer at 2 C and 2 R, rows least recently used."""
    served = budget.served[LRU.name]
    layers = np.array([head.layer for head in budget.heads])
    rates = budget.rates(served.keys, "candidates"), budget.rates(served.values, "selected")
    means = [[round(float(rate[layers == layer, 1].mean()), 3) for layer in np.unique(layers)] for rate in rates]
    return {"layers": np.unique(layers).tolist(), "keys": means[0], "values": means[1]}


def draw(figure: Figure, result: Result) -> None:
    """Draw bytes over the bus against the size of the cache for the default C, and hit rates by layer for each C."""
    left, right = figure.subplots(1, 2)
    reads: Any = result.tables[0].rows[0]
    for row in result.tables[1].rows[: len(POLICIES)]:
        left.plot(FACTORS, row[10:13], "o-", label=row[1])
    left.axhline(reads[-2], color="gray", linestyle="--", label="no cache")
    left.set(xlabel="size, in C and R", ylabel="MB a step over the bus", xticks=FACTORS, ylim=(0, None))
    left.set_title(f"C = {reads[0]:,}, R = {reads[1]:,}")
    for count, found in result.series.items():
        lines = right.plot(found["layers"], found["keys"], "o-", label=f"C = {int(count):,}")
        right.plot(found["layers"], found["values"], "x:", color=lines[0].get_color())
    right.set(xlabel="layer", ylabel="hit rate: keys, 2 C (o); values, 2 R (x)", ylim=(0, 1.02))
    for panel in (left, right):
        panel.grid(alpha=0.3)
        panel.legend()


def main(argv: list[str] | None = None) -> list[Result]:
    """Run the benchmark."""
    made = parser("locality", __doc__)
    names = [case.name for case in CASES]
    made.add_argument("--cases", nargs="+", default=names, choices=names, help="contexts to measure (default: all)")
    options = parse(made, argv)
    cases = QUICK_CASES if options.quick else [case for case in CASES if case.name in options.cases]
    results = list(map(partial(measure, options=options), cases))
    for result in results:
        print(result.markdown())
    return results
