"""A decode step of the whole model, KIV ÷ a plain DynamicCache, where contexts are short enough for both.

Keys and values are random (see `fill`). KIV and the plain cache take turns in one process; each pair of a number of
threads and a set of instructions has a process of its own, since torch chooses its instructions when it is loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import torch

from .fill import fill, measure_spreads
from .models import MODELS, kjv_tokens
from .options import parse, parser
from .report import Result, short, token_axis
from .subjects import Factory
from .timing import interleave, median_ms

if TYPE_CHECKING:
    from matplotlib.figure import Figure

K = 1024
CONTEXTS = (K, 2 * K, 4 * K, 6 * K, 8 * K, 16 * K, 32 * K)
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
INSTRUCTIONS = {"all": {}, "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}}
LIMIT = 1.0
"""KIV shall take no longer than a plain cache."""


def measure(options: argparse.Namespace) -> list[list[float]]:
    """Return for each context its tokens, and the median milliseconds of a step by KIV and by a plain cache."""
    (model_name,), (dtype,) = options.models, options.dtypes
    factory = Factory(model_name, options.impl, DTYPES[dtype])
    ids = kjv_tokens(model_name, 4096)
    spreads, rows = measure_spreads(factory.model, ids[:, :512]), list[list[float]]()
    for context in CONTEXTS[:2] if options.quick else CONTEXTS:
        subjects = [factory.kiv("KIV"), factory.plain("plain")]
        for subject in subjects:
            fill(subject, spreads, ids, context, options.seed)
        steps = {s.name: lambda number, s=s: s.step(ids[:, 512 + number][None]) for s in subjects}
        taken = interleave(steps, 3 if options.quick else options.rounds, 1 if options.quick else 3)
        rows.append([context, *(median_ms(taken[s.name]) for s in subjects)])
        for subject in subjects:
            subject.close()
    return rows


def part(options: argparse.Namespace, model: str, dtype: str, threads: int, instructions: str) -> list[list[float]]:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.step", "--one", "--models", model, "--dtypes", dtype]
    command += ["--threads", str(threads), "--rounds", str(options.rounds), "--impl", options.impl]
    command += ["--quick"] if options.quick else []
    environment = os.environ | INSTRUCTIONS[instructions]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def draw(figure: Figure, result: Result) -> None:
    """Draw the ratio against context, a panel a model."""
    panels = figure.subplots(1, len(result.series), squeeze=False)[0]
    figure.set_size_inches(5 * len(result.series), 4)
    for panel, (model_name, lines) in zip(panels, result.series.items(), strict=True):
        for line in lines:
            points = line["ms"]
            ratios = [kiv / plain for _, kiv, plain in points]
            panel.plot([at for at, _, _ in points], ratios, "o-", label=line["label"], markersize=3)
        panel.axhline(LIMIT, color="grey", linewidth=1)
        panel.set(title=MODELS[model_name].title, ylabel="step, KIV ÷ plain cache", yscale="log")
        token_axis(panel, [at for at, _, _ in lines[0]["ms"]])


def main(argv: list[str] | None = None) -> Result:
    """Run the benchmark."""
    made = parser("step", __doc__)
    made.add_argument("--models", nargs="+", default=["smollm2", "gemma"], choices=["smollm2", "gemma"])
    made.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    made.add_argument("--instructions", nargs="+", default=list(INSTRUCTIONS), choices=list(INSTRUCTIONS))
    made.add_argument("--rounds", type=int, default=9, help="steps of each, in turns")
    made.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parse(made, argv)
    result = Result("step", "A decode step beside a plain cache", {"impl": options.impl, "seed": options.seed})
    if options.one:
        print(json.dumps(measure(options)))
        return result
    for model in options.models:
        shown = CONTEXTS[:2] if options.quick else CONTEXTS
        title = f"{MODELS[model].title}: a step's time, KIV ÷ plain (and KIV's ms)"
        table = result.table(title, "keys", "instructions", "threads", *(short(context) for context in shown))
        for dtype in options.dtypes:
            for instructions in options.instructions:
                for threads in (1, 2):
                    rows = part(options, model, dtype, threads, instructions)
                    cells = [f"{kiv / plain:.2f} ({kiv:.0f})" for _, kiv, plain in rows]
                    table.add(dtype, instructions, threads, *cells)
                    label = f"{dtype}, {instructions}, threads {threads}"
                    result.series.setdefault(model, []).append({"label": label, "ms": rows})
                    worst = max(kiv / plain for _, kiv, plain in rows)
                    result.target(f"{MODELS[model].title}, {label}: the worst ratio", LIMIT, worst)
                    result.write(options.out, draw)
    print(result.markdown())
    return result


if __name__ == "__main__":
    main()
