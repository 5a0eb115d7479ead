"""Bytes on the device for the original KIV's geometry: 3 stores, 1 KV head, D 512, bfloat16, up to a million tokens.

Everything that a store holds on the device is counted: sinks, hot tokens, index, staging. The limit at a million
tokens is 150 MB, and 100 MB with `--index-channels 32 --hot-tokens 512`; what the original's rule needs is beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from kiv_hf.impls import resolve_impl
from kiv_reference.config import KIVConfig
from tqdm import tqdm

from . import original
from .machine import process_bytes
from .options import parse, parser
from .report import Result, short, token_axis

if TYPE_CHECKING:
    import argparse

    from matplotlib.figure import Figure

K = 1024
STORES, HEADS, QUERY_HEADS, WIDTH = 3, 1, 8, 512
CONTEXTS = (4 * K, 32 * K, 128 * K, 512 * K, 1024 * K)
QUICK = (4 * K, 8 * K)
CHUNK_TOKENS = 2 * K
DEFAULT = KIVConfig.index_channels, KIVConfig.hot_tokens
LIMIT_BYTES = {DEFAULT: 150e6, (32, 512): 100e6}
"""Channels that the index codes, and hot tokens -> most bytes on the device at a million tokens."""


def original_bytes(tokens: int) -> int:
    """Return the device bytes of the original KIV's rule: the hot window, and a mean key for each page."""
    pages = max(0, (tokens - original.HOT_TOKENS) // original.PAGE_TOKENS)
    near = min(tokens, original.HOT_TOKENS) * 2 + pages
    return STORES * HEADS * WIDTH * torch.bfloat16.itemsize * near


def breakdown(pool: Any) -> dict[str, int]:
    """Return the device bytes by part; empty for an implementation that does not tell its parts."""
    if hasattr(pool, "device_breakdown"):
        return pool.device_breakdown()
    return {}


def measure(contexts: tuple[int, ...], result: Result, options: argparse.Namespace) -> None:
    """Fill three stores, stop at each context, and tabulate."""
    ram_bytes = options.ram_mib * 2**20 if options.ram_mib else None
    channels, hot = options.index_channels, options.hot_tokens
    config = KIVConfig(index_channels=channels, hot_tokens=hot, ram_bytes=ram_bytes, spill_dir=options.spill_dir)
    pool: Any = resolve_impl(options.impl)(config)
    stores = [pool.layer_store() for _ in range(STORES)]
    generator = torch.Generator().manual_seed(options.seed)
    done = 0
    token_bytes = 2 * HEADS * WIDTH * torch.bfloat16.itemsize * STORES
    table = result.table(
        "Device bytes, MB",
        *("context", "KIV device", "of it sinks and hot", "of it the rest", "the rest, bytes a token"),
        *("KIV RAM", "KIV disk", "plain cache", "original KIV's rule, device", "process"),
    )
    series: list[dict[str, Any]] = []
    for context in contexts:
        for start in tqdm(range(done, context, CHUNK_TOKENS), desc=short(context), disable=None, leave=False):
            shape = (1, HEADS, min(CHUNK_TOKENS, context - start), WIDTH)
            key, value = (torch.randn(shape, generator=generator).to(torch.bfloat16) for _ in range(2))
            for store in stores:
                store.append(key, value)
        done = context
        _step(stores, generator)  # so that what a step needs is allocated too
        held, parts = pool.memory(), stores[0].tokens()
        near = (parts.sinks + parts.hot) * token_bytes
        rest = held.device - near
        table.add(
            *(short(context), held.device / 1e6, near / 1e6, rest / 1e6, rest / context, held.ram / 1e6),
            *(held.disk / 1e6, context * token_bytes / 1e6, original_bytes(context) / 1e6, process_bytes().rss / 1e6),
        )
        series.append({"tokens": context, "device": held.device, "near": near, "ram": held.ram, "disk": held.disk})
    result.series["contexts"] = series
    _break_down(pool, contexts[-1], result)
    limit = LIMIT_BYTES.get((channels, hot))
    if contexts[-1] == 1024 * K and limit is not None:
        result.target("device at 1M", limit / 1e6, series[-1]["device"] / 1e6, "MB")
    pool.close()


def _step(stores: list[Any], generator: torch.Generator) -> None:
    for store in stores:
        key, value = (torch.randn(1, HEADS, 1, WIDTH, generator=generator).to(torch.bfloat16) for _ in range(2))
        query = torch.randn(1, QUERY_HEADS, 1, WIDTH, generator=generator).to(torch.bfloat16)
        store.append(key, value)
        store.attend(query, scale=WIDTH**-0.5)


def _break_down(pool: Any, context: int, result: Result) -> None:
    parts = breakdown(pool)
    if not parts:
        return
    table = result.table(f"What is on the device at {short(context)}", "part", "bytes", "share")
    total = pool.memory().device
    for name, count in parts.items():
        table.add(name, count, f"{count / total:.1%}")
    table.add("counted in all", total, "100%")
    if sum(parts.values()) != total:
        raise AssertionError(f"the parts sum to {sum(parts.values())}, not to {total}")


def draw(figure: Figure, result: Result) -> None:
    """Draw memory by tier against context."""
    panel = figure.subplots()
    series = result.series["contexts"]
    at = [held["tokens"] for held in series]
    for tier, style in (("device", "o-"), ("near", "v-"), ("ram", "^:"), ("disk", "x:")):
        if any(held[tier] for held in series):
            label = {"near": "device: sinks and hot", "ram": "RAM"}.get(tier, tier)
            panel.plot(at, [held[tier] / 1e6 for held in series], style, label=label)
    for target in result.targets:
        panel.axhline(target.limit, color="k", lw=0.8, ls="--", label="limit at 1M")
    panel.set(yscale="log", ylabel="MB", title="3 stores, 1 KV head, D 512, bfloat16")
    token_axis(panel, at)


def main(argv: list[str] | None = None) -> Result:
    """Run the benchmark."""
    made = parser("device_bytes", __doc__)
    made.add_argument("--ram-mib", type=int, help="ram_bytes in MiB (default: no limit; 6.4 GB are needed)")
    made.add_argument("--spill-dir", help="folder of the disk tier (default: the system's)")
    for name, value in zip(("index-channels", "hot-tokens"), DEFAULT, strict=True):
        made.add_argument(f"--{name}", type=int, default=value, help=f"of `KIVConfig` (default: {value})")
    options = parse(made, argv)
    settings = {"impl": options.impl, "stores": STORES, "KV heads": HEADS, "D": WIDTH, "ram MiB": options.ram_mib}
    chosen = options.index_channels, options.hot_tokens
    settings |= dict(zip(("index_channels", "hot_tokens"), chosen, strict=True))
    name = "device_bytes" if chosen == DEFAULT else "device_bytes_{}_channels_{}_hot".format(*chosen)
    result = Result(name, "Bytes on the device", settings)
    measure(QUICK if options.quick else CONTEXTS, result, options)
    result.write(options.out, draw)
    print(result.markdown())
    return result
