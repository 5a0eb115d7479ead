"""How well a cache of rows on a device would do: keys of candidates and values of selected tokens, step after step.

Decode of real text, teacher-forced; what each step reads is what KIV's reports say, and the caches are simulated on it
(see `recency`), one for each KV head: C, 2 C or 4 C rows of keys and R, 2 R or 4 R rows of values. They are empty
before the first step; rates are of the steps after the warm-up. Milliseconds are bytes by 25 GB/s: predicted, no GPU
is asked. A result for each context; the longest are of the first layer with full attention alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .fidelity.contexts import Context, System, asked
from .fidelity.long.capture import TEXT_TOKENS, load_capture
from .fidelity.long.documents import LongDocument
from .fidelity.long.figures import default_tokens
from .locality_reads import FirstGlobalLayer, Recording, decode, decode_capture, decode_layer
from .locality_tables import FACTORS, POLICIES, TABLES, Budget, by_layer
from .models import MODELS, kjv_tokens
from .options import QUICK, parse, parser
from .report import Result, short

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from kiv_hf import KIVConfig
    from matplotlib.figure import Figure

K = 1024
WARMUP, STEPS = 32, 96
DIGITS = 3
"""Significant digits of the tables."""


@dataclass(frozen=True)
class Case:
    """A context on a model, and the shares of its cold tokens that are candidates, beside the default number.

    `source` is "" for a whole model, "captured" for what a capture of `fidelity long` kept of all layers, "one-layer"
    for the first layer with full attention.
    """

    model_name: str
    tokens: int
    shares: tuple[float, ...]
    source: str = ""

    @property
    def name(self) -> str:
        """Of the result."""
        return "-".join(filter(None, (self.model_name, short(self.tokens), self.source)))

    def steps(self, *, quick: bool) -> tuple[int, int]:
        """Return the steps of the warm-up, and those that are measured."""
        if self.source == "captured":
            return TEXT_TOKENS // 4, TEXT_TOKENS - TEXT_TOKENS // 4
        return (4, 4) if quick else (WARMUP, STEPS)

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
    Case("gemma", 32000, (0.25, 0.06, 0.016, 0.008), "captured"),
    Case("gemma", 32 * K, (), "one-layer"),
    Case("gemma", 128 * K, (0.016,), "one-layer"),
    Case("gemma", 1024 * K, (0.016,), "one-layer"),
)
QUICK_CASES = (Case("smollm2", K, (0.06,)), Case("gemma", 2 * K, (), "one-layer"))


def recordings(case: Case, options: argparse.Namespace, steps: int) -> Iterator[tuple[KIVConfig, Recording]]:
    """Yield what each budget of a case reads."""
    configs = case.configs(steps, quick=options.quick)
    if case.source == "captured":
        capture = load_capture(LongDocument(case.model_name, "kjv", case.tokens))
        for config in configs:
            yield config, decode_capture(capture, config, options.impl)
        return
    ids = kjv_tokens(case.model_name, case.tokens + steps)
    if case.source == "one-layer":
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
    warmup, steps = case.steps(quick=options.quick)
    settings = {"impl": options.impl, "text": "King James", "warm-up steps": warmup, "measured steps": steps}
    title = f"Locality of what a step reads: {MODELS[case.model_name].title}, {short(case.tokens)} tokens"
    result = Result(f"locality_{case.name}", title, settings)
    tables = [(result.table(*texts), rows) for rows, *texts in TABLES]
    for config, recording in recordings(case, options, warmup + steps):
        budget = Budget(config, list(recording.heads.values()), warmup)
        for table, rows in tables:
            for row in rows(budget):
                table.add(*(float(f"{cell:.{DIGITS}g}") if isinstance(cell, float) else cell for cell in row))
        found = result.series[str(config.candidate_tokens)] = by_layer(budget)
        result.settings["layers"] = f"{found['layers'][0]} alone" if case.source == "one-layer" else "all that retrieve"
        result.write(options.out, draw)
    return result


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
        right.plot(found["layers"], found["keys"], "o-", label=f"C = {int(count):,}")
    right.set(xlabel="layer", ylabel="hit rate of keys, rows, 2 C", ylim=(0, 1.02))
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
    results = [measure(case, options) for case in cases]
    for result in results:
        print(result.markdown())
    return results
