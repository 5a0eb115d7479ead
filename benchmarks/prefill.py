"""Chunked prefill of real text: KIV, exact and by retrieval, against a plain DynamicCache under sdpa.

The three take turns chunk by chunk on the same King James text. The table also gives KIV's bytes by tier as the context
grows, and the last token's logits of KIV's exact prefill and of the plain cache are compared: both are full attention,
so they differ by rounding alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .models import MODELS, kjv_tokens
from .options import config, parse, parser
from .report import Result, short, token_axis
from .subjects import Factory, Subject, chunks
from .timing import quiet, seconds

if TYPE_CHECKING:
    import argparse

    from matplotlib.figure import Figure

K = 1024
TOKENS = {"gemma": 16 * K, "smollm2": 8 * K}
QUICK = {"gemma": 1 * K, "smollm2": 512}
LIMIT = 1.0
TIERS = ("device", "beyond", "ram", "plain")
COLOURS = ("C0", "C1")
STYLES = {"KIV": "o-", "plain": "s--", "by retrieval": "^:"}
"""Subject -> marker and line."""


def measure_model(model_name: str, tokens: int, chunk: int, result: Result, options: argparse.Namespace) -> None:
    """Fill `result` with the table of one model."""
    factory = Factory(model_name, options.impl)
    kiv, plain = factory.kiv("KIV", config(options, prefill="exact")), factory.plain("plain")
    retrieving = factory.kiv("by retrieval", config(options, prefill="retrieve"))
    subjects = [kiv, plain, retrieving]
    ids = kjv_tokens(model_name, tokens + chunk)
    for subject in subjects:  # an untimed first chunk: libraries load, memory is touched
        subject.step(ids[:, tokens:])
        subject.cache.reset()
    taken: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    logits: dict[str, torch.Tensor] = {}
    memory: list[dict[str, int]] = []
    with quiet(), kiv.cache.chunked_prefill(tokens), retrieving.cache.chunked_prefill(tokens):
        for number, part in enumerate(chunks(ids[:, :tokens], chunk)):
            first = number % len(subjects)
            for subject in subjects[first:] + subjects[:first]:

                def run(subject: Subject = subject, part: torch.Tensor = part) -> None:
                    logits[subject.name] = subject.step(part)

                taken[subject.name].append(seconds(run))
            memory.append(_memory(kiv))
    for subject in subjects:
        subject.close()
    title = MODELS[model_name].title
    result.series[model_name] = {**taken, "memory": memory}
    result.target(f"{title}: exact KIV ÷ plain", LIMIT, sum(taken["KIV"]) / sum(taken["plain"]))
    _tabulate(f"{title}, bfloat16: prefill in chunks of {chunk}", taken, memory, result)
    difference = (logits["KIV"].float() - logits["plain"].float()).abs().max().item()
    same = "the same" if logits["KIV"].argmax() == logits["plain"].argmax() else "another"
    result.notes.append(f"{title}: last logits differ by at most {difference:.3g}; the best token is {same}.")


def _memory(subject: Subject) -> dict[str, int]:
    """Count KIV's bytes by tier, the device's that are neither sinks nor hot, and those of a plain cache."""
    held, parts, config = subject.cache.memory(), subject.cache.tokens(), subject.model.config
    layers = len(subject.cache.kiv_layers())
    token_bytes = 2 * config.num_key_value_heads * config.head_dim * torch.bfloat16.itemsize * layers
    near = (parts.sinks + parts.hot) * token_bytes
    context = sum(parts)
    beyond = held.device - near
    return {
        "tokens": context,
        "device": held.device,
        "beyond": beyond,
        "ram": held.ram,
        "disk": held.disk,
        "plain": context * token_bytes,
    }


def _tabulate(title: str, taken: dict[str, list[float]], memory: list[dict[str, int]], result: Result) -> None:
    table = result.table(
        title,
        *("tokens", "KIV, s", "plain, s", "KIV ÷ plain", "last chunk ÷ plain's", "by retrieval, s"),
        *("KIV device, MB", "of it beyond sinks and hot", "KIV RAM, MB", "plain, MB"),
    )
    final = memory[-1]["tokens"]
    marks = {final >> shift for shift in range(8)}
    for i, held in enumerate(memory):
        if held["tokens"] in marks:
            kiv_s, plain_s, retrieving_s = (sum(times[: i + 1]) for times in taken.values())
            last = taken["KIV"][i] / taken["plain"][i]
            table.add(
                *(short(held["tokens"]), kiv_s, plain_s, kiv_s / plain_s, last, retrieving_s),
                *(held[tier] / 1e6 for tier in TIERS),
            )


def draw(figure: Figure, result: Result) -> None:
    """Draw seconds of each chunk, and bytes, against context."""
    times, memory = figure.subplots(1, 2)
    for colour, (name, run) in zip(COLOURS, result.series.items(), strict=False):
        ends = [held["tokens"] for held in run["memory"]]
        for subject in (subject for subject in STYLES if subject in run):
            label = f"{name}, {subject}"
            times.plot(ends, run[subject], STYLES[subject], color=colour, markerfacecolor="none", label=label)
        for tier, style in (("device", "-"), ("plain", "--")):
            label = f"{name}, " + ("KIV, device" if tier == "device" else "plain")
            memory.plot(ends, [held[tier] / 1e6 for held in run["memory"]], style, color=colour, label=label)
    times.set(ylabel="chunk, s", title="Prefill", ylim=(0, None))
    memory.set(ylabel="MB", yscale="log", title="Memory")
    contexts = sorted({held["tokens"] for run in result.series.values() for held in run["memory"]})
    ticks = [context for context in contexts if context & (context - 1) == 0]
    for panel in (times, memory):
        token_axis(panel, ticks)


def main(argv: list[str] | None = None) -> Result:
    """Run the benchmark."""
    made = parser("prefill", __doc__)
    made.add_argument("--models", nargs="+", default=list(TOKENS), choices=list(TOKENS))
    made.add_argument("--chunk", type=int, default=1024, help="tokens of a chunk")
    options = parse(made, argv)
    chunk = 256 if options.quick else options.chunk
    result = Result("prefill", "Chunked prefill of real text", {"impl": options.impl, "chunk": chunk})
    for model_name in options.models:
        tokens = (QUICK if options.quick else TOKENS)[model_name]
        measure_model(model_name, tokens, chunk, result, options)
        result.write(options.out, draw)
    print(result.markdown())
    return result
