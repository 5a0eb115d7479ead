"""Decode time of the whole model against context: KIV, a plain DynamicCache, and the original KIV's rule.

Keys and values are random (see `fill`). Everything that is compared takes turns in one process. Each context is
measured beside KIV and a plain cache at the smallest context, so that every ratio comes from one run of turns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .fill import LayerSpread, fill, measure_spreads
from .models import MODELS, kjv_tokens
from .options import parse, parser
from .report import Result, short, token_axis
from .subjects import Clocks, Factory, Subject
from .timing import interleave, median_ms, quiet, seconds

if TYPE_CHECKING:
    import argparse

    from matplotlib.figure import Figure

K = 1024
STATISTICS_TOKENS = 512
RIVALS = ("KIV", "plain", "original KIV's rule")
MEMORY = ("KIV, device", "KIV, RAM", "plain cache")


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
        """Return real token `number` of those that decode steps feed, the same for every subject."""
        return self.ids[:, (STATISTICS_TOKENS + number) % self.ids.shape[1]][None]

    def turns(self, subjects: list[Subject], rounds: int) -> dict[str, list[float]]:
        """Time steps of `subjects` in turns; seconds by name."""
        warmup = 1 if self.options.quick else 5
        steps = {s.name: lambda number, s=s: s.step(self.token(number)) for s in subjects}
        return interleave(steps, 3 if self.options.quick else rounds, warmup)

    def parts(self, subject: Subject, rounds: int = 20) -> tuple[float, float]:
        """Return the median milliseconds a step in append and in attend, all KIV layers together."""
        taken: list[tuple[float, float]] = []
        with quiet(), Clocks(subject) as clocks:
            for number in range(3 if self.options.quick else rounds):
                subject.step(self.token(number))
                taken.append(clocks.read())
        return median_ms([append for append, _ in taken]), median_ms([attend for _, attend in taken])


def measure_model(model_name: str, plan: Plan, result: Result, options: argparse.Namespace) -> None:
    """Fill `result` with the tables of one model."""
    run = DecodeRun(model_name, options)
    title, anchor = f"{MODELS[model_name].title}, bfloat16", short(plan.contexts[0])
    table = result.table(
        f"{title}: decode step, ms (median)",
        *("context", *RIVALS, f"KIV ÷ KIV at {anchor}", f"KIV ÷ plain at {anchor}"),
        *("KIV append", "KIV attend", "KIV first step"),
    )
    memory_table = result.table(f"{title}: bytes of the cache, MB", "context", *MEMORY)
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
        plain_ms = ms[plain_anchor.name] if is_anchor else None
        if not is_anchor and context <= plan.plain_up_to:
            # A group of its own, with fewer rounds: it is slow, and three large caches at once need too much memory.
            plain = run.filled(run.factory.plain(f"plain {at}"), context)
            plain_ms = median_ms(run.turns([kiv, plain], rounds=22)[plain.name])
            plain.close()
        held = kiv.cache.memory()
        to_anchor, to_plain = (ms[kiv.name] / ms[other.name] for other in (kiv_anchor, plain_anchor))
        rivals = (ms[kiv.name], plain_ms, ms[original.name])
        table.add(at, *rivals, to_anchor, to_plain, *run.parts(kiv), run.first_ms[kiv.name])
        memory = tuple(count / 1e6 for count in (held.device, held.ram, context * plain_token_bytes(kiv)))
        memory_table.add(at, *memory)
        result.series.setdefault(model_name, []).append({"context": context, "ms": rivals, "memory_mb": memory})
        if not is_anchor:
            kiv.close()
        _targets(model_name, context, is_anchor, to_anchor, to_plain, result)
        result.write(options.out, draw)
    kiv_anchor.close()


def plain_token_bytes(kiv: Subject) -> int:
    """Count the bytes that a plain cache needs for a token in those layers that are KIV's in `kiv`."""
    config = kiv.model.config
    return 2 * len(kiv.stores()) * config.num_key_value_heads * config.head_dim * torch.bfloat16.itemsize


def _targets(model_name: str, context: int, is_anchor: bool, to_anchor: float, to_plain: float, result: Result) -> None:
    title = MODELS[model_name].title
    if model_name == "gemma" and is_anchor:
        result.target(f"{title}: KIV at 4K ÷ plain at 4K", 1.00, to_plain)
    if model_name == "gemma" and context == 1024 * K:
        result.target(f"{title}: KIV at 1M ÷ KIV at 4K", 1.10, to_anchor)
    if model_name == "smollm2" and context == 256 * K:
        result.target(f"{title}: KIV at 256K ÷ KIV at 4K", 1.30, to_anchor)


def draw(figure: Figure, result: Result) -> None:
    """Decode time, and memory by tier, against context: a column a model."""
    panels = figure.subplots(2, len(result.series), squeeze=False)
    figure.set_size_inches(5 * len(result.series), 8)
    for column, (model_name, points) in enumerate(result.series.items()):
        contexts = [point["context"] for point in points]
        for panel, part, labels in ((panels[0, column], "ms", RIVALS), (panels[1, column], "memory_mb", MEMORY)):
            for i, (label, style) in enumerate(zip(labels, ("o-", "s--", "^:"), strict=True)):
                known = [(at, point[part][i]) for at, point in zip(contexts, points, strict=True) if point[part][i]]
                panel.plot([at for at, _ in known], [value for _, value in known], style, label=label)
            panel.set_yscale("log")
        panels[0, column].set(title=MODELS[model_name].title, ylabel="decode step, ms")
        panels[1, column].set_ylabel("cache, MB")
        for panel in panels[:, column]:
            token_axis(panel, contexts)


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
