"""Decode time of the whole model against context: KIV, a plain DynamicCache, and the original KIV's rule.

Keys and values are random (see `fill`). Everything that is compared takes turns in one process. Each context is
measured beside KIV and a plain cache at the smallest context, so that every ratio comes from one run of turns.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure

from .fill import LayerSpread, fill, measure_spreads
from .models import MODELS, kjv_tokens
from .options import parse, parser
from .report import Result, short, token_axis, tokens
from .subjects import Clocks, Factory, Subject
from .timing import interleave, median_ms, quiet, seconds

K = 1024
STATISTICS_TOKENS = 512


@dataclass(frozen=True)
class Plan:
    """Contexts to measure on a model; `plain_up_to` bounds the plain cache, which is slow."""

    contexts: tuple[int, ...]
    plain_up_to: int


PLANS = {
    "gemma": Plan((4 * K, 32 * K, 128 * K, 512 * K, 1024 * K), 1024 * K),
    "smollm2": Plan((4 * K, 64 * K, 256 * K), 64 * K),
}
QUICK = {"gemma": Plan((4 * K, 8 * K), 8 * K), "smollm2": Plan((3 * K, 4 * K), 4 * K)}


class DecodeRun:
    """The measurements on one model."""

    def __init__(self, model_name: str, options: argparse.Namespace) -> None:
        self.options = options
        self.factory = Factory(model_name, options.impl)
        self.ids = kjv_tokens(model_name, 4096)
        self.spreads: list[LayerSpread] = measure_spreads(self.factory.model, self.ids[:, :STATISTICS_TOKENS])
        self.first_ms: dict[str, float] = {}

    def filled(self, subject: Subject, tokens: int) -> Subject:
        """Fill `subject` and time its first step."""
        fill(subject, self.spreads, self.ids, tokens, self.options.seed)
        with quiet():
            self.first_ms[subject.name] = 1e3 * seconds(lambda: subject.step(self.token(0)))
        return subject

    def token(self, number: int) -> torch.Tensor:
        """Real token `number` of those that decode steps feed, the same for every subject."""
        return self.ids[:, (STATISTICS_TOKENS + number) % self.ids.shape[1]][None]

    def turns(self, subjects: list[Subject], rounds: int) -> dict[str, list[float]]:
        """Time steps of `subjects` in turns; seconds by name."""
        warmup = 1 if self.options.quick else 5
        steps = {s.name: lambda number, s=s: s.step(self.token(number)) for s in subjects}
        return interleave(steps, 3 if self.options.quick else rounds, warmup)

    def parts(self, subject: Subject, rounds: int = 20) -> tuple[float, float]:
        """Median milliseconds a step in append and in attend, all KIV layers together."""
        taken: list[tuple[float, float]] = []
        with quiet(), Clocks(subject) as clocks:
            for number in range(3 if self.options.quick else rounds):
                subject.step(self.token(number))
                taken.append(clocks.read())
        return median_ms([append for append, _ in taken]), median_ms([attend for _, attend in taken])


def measure_model(model_name: str, plan: Plan, result: Result, options: argparse.Namespace) -> None:
    """Fill `result` with the table of one model."""
    run = DecodeRun(model_name, options)
    anchor = short(plan.contexts[0])
    table = result.table(
        f"{MODELS[model_name].title}, bfloat16: decode step, ms (median)",
        *("context", "KIV", "plain", "original KIV's rule", f"KIV ÷ KIV at {anchor}", f"KIV ÷ plain at {anchor}"),
        *("KIV append", "KIV attend", "KIV first step"),
    )
    kiv_anchor = run.filled(run.factory.kiv(f"KIV {anchor}"), plan.contexts[0])
    plain_anchor = run.filled(run.factory.plain(f"plain {anchor}"), plan.contexts[0])
    for context in plan.contexts:
        at = short(context)
        is_anchor = context == plan.contexts[0]
        kiv = kiv_anchor if is_anchor else run.filled(run.factory.kiv(f"KIV {at}"), context)
        original = run.filled(run.factory.original(f"original {at}"), context)
        taken = run.turns([*dict.fromkeys([kiv_anchor, plain_anchor, kiv, original])], rounds=60)
        original.close()
        ms = {name: median_ms(times) for name, times in taken.items()}
        series: dict[str, Any] = {"turns": taken}
        plain_ms = ms[plain_anchor.name] if is_anchor else None
        if not is_anchor and context <= plan.plain_up_to:
            # A group of its own, with fewer rounds: it is slow, and three large caches at once need too much memory.
            plain = run.filled(run.factory.plain(f"plain {at}"), context)
            series["turns with plain"] = run.turns([kiv, plain], rounds=22)
            plain_ms = median_ms(series["turns with plain"][plain.name])
            plain.close()
        append_ms, attend_ms = run.parts(kiv)
        to_anchor, to_plain = (ms[kiv.name] / ms[other.name] for other in (kiv_anchor, plain_anchor))
        first = run.first_ms[kiv.name]
        table.add(at, ms[kiv.name], plain_ms, ms[original.name], to_anchor, to_plain, append_ms, attend_ms, first)
        result.series.setdefault(model_name, {})[at] = series | {"first_ms": dict(run.first_ms), "context": context}
        if not is_anchor:
            kiv.close()
        _targets(model_name, context, is_anchor, to_anchor, to_plain, result)
        result.write(options.out, lambda figure: draw(figure, result))
    kiv_anchor.close()


def _targets(model_name: str, context: int, is_anchor: bool, to_anchor: float, to_plain: float, result: Result) -> None:
    title = MODELS[model_name].title
    if model_name == "gemma" and is_anchor:
        result.target(f"{title}: KIV at 4K ÷ plain at 4K", 1.10, to_plain)
    if model_name == "gemma" and context == 1024 * K:
        result.target(f"{title}: KIV at 1M ÷ KIV at 4K", 1.10, to_anchor)
    if model_name == "smollm2" and context == 256 * K:
        result.target(f"{title}: KIV at 256K ÷ KIV at 4K", 1.25, to_anchor)


def draw(figure: Figure, result: Result) -> None:
    """Decode time against context, both axes logarithmic, a panel a model."""
    panels = figure.subplots(1, len(result.tables), squeeze=False)[0]
    for panel, table in zip(panels, result.tables, strict=True):
        for column, style in ((1, "o-"), (2, "s--"), (3, "^:")):
            points = [(tokens(str(row[0])), row[column]) for row in table.rows if row[column] is not None]
            panel.plot([at for at, _ in points], [ms for _, ms in points], style, label=table.columns[column])
        panel.set(yscale="log", title=table.title.split(",")[0], ylabel="decode step, ms")
        token_axis(panel, [tokens(str(row[0])) for row in table.rows])


def main(argv: list[str] | None = None) -> Result:
    """Run the benchmark."""
    made = parser("decode", __doc__)
    made.add_argument("--models", nargs="+", default=list(PLANS), choices=list(PLANS))
    options = parse(made, argv)
    result = Result("decode", "Decode time against context", {"impl": options.impl, "seed": options.seed})
    plans = QUICK if options.quick else PLANS
    for model_name in options.models:
        measure_model(model_name, plans[model_name], result, options)
    print(result.markdown())
    return result


if __name__ == "__main__":
    main()
