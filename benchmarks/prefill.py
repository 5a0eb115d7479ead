"""Exact chunked prefill of real text: KIV against a plain DynamicCache under sdpa with the same chunk.

The two take turns chunk by chunk on the same King James text. The table also gives KIV's bytes by tier as the context
grows, and the last token's logits are compared: both are full attention, so they differ by rounding alone.
"""

from __future__ import annotations

import argparse

import torch
from kiv_hf import KIVConfig
from matplotlib.figure import Figure

from .models import MODELS, kjv_tokens
from .options import parse, parser
from .report import Result, Table, short
from .subjects import Factory, chunks
from .timing import quiet, seconds

K = 1024
TOKENS = {"gemma": 16 * K, "smollm2": 8 * K}
QUICK = {"gemma": 3 * K, "smollm2": 1 * K}
LIMIT = 1.10


def measure_model(model_name: str, tokens: int, chunk: int, result: Result, options: argparse.Namespace) -> None:
    """Fill `result` with the table of one model."""
    factory = Factory(model_name, options.impl)
    kiv, plain = factory.kiv("KIV", KIVConfig(prefill="exact")), factory.plain("plain")
    ids = kjv_tokens(model_name, tokens + chunk)
    for subject in (kiv, plain):  # an untimed first chunk: libraries load, memory is touched
        subject.step(ids[:, tokens:])
        subject.cache.reset()
    table = result.table(
        f"{MODELS[model_name].title}, bfloat16: exact prefill in chunks of {chunk}",
        *("tokens", "KIV, s", "plain, s", "KIV ÷ plain", "last chunk ÷ plain's"),
        *("KIV device, MB", "of it beyond sinks and hot, bytes a token", "KIV RAM, MB", "plain, MB"),
    )
    taken: dict[str, list[float]] = {"KIV": [], "plain": []}
    marks = {tokens >> shift for shift in range(8)}
    logits: dict[str, torch.Tensor] = {}
    token_bytes = _token_bytes(factory)
    done = 0
    with quiet():
        for number, part in enumerate(chunks(ids[:, :tokens], chunk)):
            for subject in (kiv, plain) if number % 2 == 0 else (plain, kiv):

                def run(subject=subject, part=part) -> None:
                    logits[subject.name] = subject.step(part)

                taken[subject.name].append(seconds(run))
            done += part.shape[1]
            if done in marks:
                memory, parts = kiv.cache.memory(), kiv.cache.tokens()
                layers = len(kiv.cache.kiv_layers())
                beyond = memory.device - (parts.sinks + parts.hot) * token_bytes * layers
                spent, plain_s = sum(taken["KIV"]), sum(taken["plain"])
                last = taken["KIV"][-1] / taken["plain"][-1]
                table.add(
                    *(short(done), spent, plain_s, spent / plain_s, last, memory.device / 1e6, beyond / done),
                    *(memory.ram / 1e6, done * token_bytes * layers / 1e6),
                )
    result.series[model_name] = taken | {"chunk": chunk}
    result.target(f"{MODELS[model_name].title}: KIV ÷ plain", LIMIT, sum(taken["KIV"]) / sum(taken["plain"]))
    difference = (logits["KIV"].float() - logits["plain"].float()).abs().max().item()
    same = "the same" if logits["KIV"].argmax() == logits["plain"].argmax() else "another"
    result.notes.append(
        f"{MODELS[model_name].title}: last logits differ by at most {difference:.3g}; the best token is {same}."
    )
    kiv.close()
    plain.close()


def _token_bytes(factory: Factory) -> int:
    """Bytes of K and V of a token in one layer."""
    config = factory.model.config
    return 2 * config.num_key_value_heads * config.head_dim * torch.bfloat16.itemsize


def draw(figure: Figure, result: Result) -> None:
    """Seconds of each chunk, and KIV's device bytes, against context."""
    times, memory = figure.subplots(1, 2)
    for (name, taken), table in zip(result.series.items(), result.tables, strict=True):
        ends = [taken["chunk"] * (i + 1) for i in range(len(taken["KIV"]))]
        times.plot(ends, taken["KIV"], "o-", label=f"{name}, KIV")
        times.plot(ends, taken["plain"], "s--", label=f"{name}, plain")
        _memory(memory, name, table)
    times.set(xlabel="context, tokens", ylabel="chunk, s", title="Exact prefill")
    memory.set(xlabel="context, tokens", ylabel="MB", yscale="log", title="Memory")
    for panel in (times, memory):
        panel.grid(alpha=0.3)
        panel.legend()


def _memory(panel, name: str, table: Table) -> None:
    at = [row[0] for row in table.rows]
    for column, style in ((5, "o-"), (7, "^:"), (8, "s--")):
        panel.plot(at, [row[column] for row in table.rows], style, label=f"{name}, {table.columns[column][:-4]}")


def main(argv: list[str] | None = None) -> Result:
    """Run the benchmark."""
    made = parser("prefill", __doc__)
    made.add_argument("--models", nargs="+", default=list(TOKENS), choices=list(TOKENS))
    made.add_argument("--chunk", type=int, default=1024, help="tokens of a chunk")
    options = parse(made, argv)
    chunk = 512 if options.quick else options.chunk
    result = Result("prefill", "Exact chunked prefill of real text", {"impl": options.impl, "chunk": chunk})
    for model_name in options.models:
        tokens = (QUICK if options.quick else TOKENS)[model_name]
        measure_model(model_name, tokens, chunk, result, options)
        result.write(options.out, lambda figure: draw(figure, result))
    print(result.markdown())
    return result


if __name__ == "__main__":
    main()
