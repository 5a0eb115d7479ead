"""Cold bytes that a prefill by retrieval has to read, chunk by chunk: one layer, random keys and values.

Twice: each chunk told how much of the prompt follows (SPEC 7.6), so that the exact suffix is that of the prompt; and
each a prompt of its own, with a suffix that reads everything. A block of queries reads its candidates anew, so many
blocks of a short context read more than all of it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from kiv_hf.impls import resolve_impl
from tqdm import tqdm

from .options import config, parse, parser
from .report import Result, short, token_axis

if TYPE_CHECKING:
    import argparse

    from matplotlib.figure import Figure

K = 1024
QUERY_HEADS, HEADS, WIDTH = 9, 3, 64
CONTEXTS = (16 * K, 64 * K)
QUICK = (2 * K, 4 * K)
WAYS = {"one prompt": True, "a suffix in each chunk": False}


def prefill(tokens: int, told: bool, options: argparse.Namespace) -> tuple[list[int], float]:
    """Read a prompt of `tokens` tokens; return the cold bytes each chunk had to read, and seconds of the CPU in all."""
    generator = torch.Generator().manual_seed(options.seed)
    pool: Any = resolve_impl(options.impl)(config(options, prefill="retrieve"))
    store, read, taken = pool.layer_store(), list[int](), 0.0
    for stop in tqdm(range(options.chunk, tokens + 1, options.chunk), desc=short(tokens), disable=None, leave=False):
        key, value, query = (
            torch.randn(1, heads, options.chunk, WIDTH, generator=generator).to(torch.bfloat16)
            for heads in (HEADS, HEADS, QUERY_HEADS)
        )
        begin = time.process_time()
        store.append(key, value)
        store.attend(query, scale=WIDTH**-0.5, remaining_prompt_tokens=tokens - stop if told else None)
        taken += time.process_time() - begin
        read.append(store.report.key_bytes + store.report.value_bytes)
    pool.close()
    return read, taken


def measure(contexts: tuple[int, ...], result: Result, options: argparse.Namespace) -> None:
    """Read a prompt of each length in both ways, and tabulate."""
    table = result.table(
        "Cold keys and values read, one layer",
        *(
            "context",
            "way",
            "all chunks, MB",
            "last chunk but one, MB",
            "last chunk, MB",
            "all ÷ one prompt's",
            "CPU, s",
        ),
    )
    for context in contexts:
        whole = 0
        for way, told in WAYS.items():
            read, taken = prefill(context, told, options)
            whole = whole or sum(read)
            table.add(*(short(context), way, sum(read) / 1e6, read[-2] / 1e6, read[-1] / 1e6, sum(read) / whole, taken))
            result.series.setdefault(way, {})[str(context)] = read


def draw(figure: Figure, result: Result) -> None:
    """Draw the bytes of each chunk against context, of the longest prompt."""
    panel = figure.subplots()
    for way, runs in result.series.items():
        read = list(runs.values())[-1]
        panel.plot([(i + 1) * result.settings["chunk"] for i in range(len(read))], [n / 1e6 for n in read], label=way)
    panel.set(ylabel="MB a chunk", title=result.title, ylim=(0, None))
    token_axis(panel, [int(context) for context in next(iter(result.series.values()))])


def main(argv: list[str] | None = None) -> Result:
    """Run the benchmark."""
    made = parser("prefill_bytes", __doc__)
    made.add_argument("--chunk", type=int, default=512, help="tokens of a chunk")
    options = parse(made, argv)
    sizes = {"query heads": QUERY_HEADS, "KV heads": HEADS, "D": WIDTH}
    result = Result(
        "prefill_bytes", "Prefill by retrieval in chunks", {"impl": options.impl, "chunk": options.chunk, **sizes}
    )
    measure(QUICK if options.quick else CONTEXTS, result, options)
    result.write(options.out, draw)
    print(result.markdown())
    return result
