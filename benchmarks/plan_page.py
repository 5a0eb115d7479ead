"""The table of `docs/plan.md`, what ``kiv plan`` predicts of two models: ``python -m benchmarks.plan_page``.

Nothing is measured: it takes seconds, and a test compares the page with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from kiv_hf import KIVConfig
from kiv_hf.cli.plan.cards import CARDS, Card
from kiv_hf.cli.plan.layout import Layout, lay_out
from kiv_hf.cli.plan.table import format_s
from kiv_hf.cli.plan.timetable import timetable
from kiv_hf.cli.plan.wish import Wish
from kiv_hf.cli.sizes.model import ModelSizes, model_sizes
from kiv_hf.cli.sizes.weights import BITS
from kiv_hf.cli.units import format_bytes
from transformers import LlamaConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kiv_hf.cli.plan.times import StepTime

K = 1024
CONTEXTS = (32 * K, 128 * K, 1024 * K)
RAM = {"H100": 256 * 10**9}
"""Bytes beside a card; 64 GB beside the others."""

MODELS = {
    "Llama-3.1-8B, 4 bits": (
        LlamaConfig(
            vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
            num_key_value_heads=8, tie_word_embeddings=False,
        ),
        BITS["4bit"],
    ),
    "SmolLM2-135M": (
        LlamaConfig(
            vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
            num_key_value_heads=3, tie_word_embeddings=True,
        ),
        None,
    ),
}  # fmt: skip
HEAD = (
    "model", "tokens", "card", "device", "RAM", "disk", "chunk", "prefill", "a token", "plain cache: device", "a token"
)  # fmt: skip


def rows() -> Iterator[tuple[str, ...]]:
    """Yield the cells of each line."""
    for name, (config, bits) in MODELS.items():
        sizes = model_sizes(config, torch.bfloat16)
        for tokens in CONTEXTS:
            for card in CARDS:
                ram = RAM.get(card.name, 64 * 10**9)
                wish = Wish(KIVConfig(), tokens, card.memory, ram, None, torch.bfloat16, bits)
                yield name, f"{tokens // K}K", card.name, *_cells(sizes, wish, card)


def _cells(sizes: ModelSizes, wish: Wish, card: Card) -> Iterator[str]:
    layout = lay_out(sizes, wish)
    (times,) = timetable(sizes, wish, layout, (card,), [])
    fits = not layout.reasons
    yield _of(layout.device, wish.device_memory)
    yield from _elsewhere(layout) if fits else ("", "", "")
    yield format_s(times.prefill_s) if fits else ""
    yield _both(times.step) if fits else ""
    yield _of(layout.plain, wish.device_memory)
    yield _both(times.plain) if layout.plain <= wish.device_memory else ""


def _elsewhere(layout: Layout) -> Iterator[str]:
    yield format_bytes(layout.ram)
    yield format_bytes(layout.held.pages_on_disk) if layout.held.pages_on_disk else "-"
    yield f"{layout.chunk:,}"


def _of(need: int, memory: int) -> str:
    return format_bytes(need) if need <= memory else f"**{format_bytes(need)}: does not fit**"


def _both(step: StepTime | None) -> str:
    return "-" if step is None else f"{format_s(step.graph)}, {format_s(step.eager)}"


def page() -> str:
    """Return the table in Markdown."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + " --- |" * len(HEAD)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows())]) + "\n"


if __name__ == "__main__":
    print(page(), end="")
