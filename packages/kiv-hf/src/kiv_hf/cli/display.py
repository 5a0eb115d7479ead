"""What the user sees: the answer on standard output, progress and the table on standard error."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from transformers import TextStreamer

from .terminal import printable
from .units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from rich.console import Console

    from ..cache.kiv_cache import KIVCache
    from .generate import Run
    from .tally import Tally


class _Speed(ProgressColumn):
    """Tokens a second, since the beginning: a text may be read in one chunk, which has no speed of its own."""

    def render(self, task: Task) -> Text:
        seconds = task.finished_time or task.elapsed or 0
        return Text(f"{task.completed / max(seconds, 1e-9):,.0f} tokens/s", style="progress.data.speed")


class AnswerStreamer(TextStreamer):
    """Prints an answer as its words become complete; `put` takes ids, `end` finishes the line."""

    def __init__(self, tokenizer: Any, console: Console) -> None:
        super().__init__(tokenizer, skip_special_tokens=True)
        self._console = console

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print `text` as it is, but for control characters: without markup, colours or breaks of rich's own."""
        self._console.out(printable(text), end="\n" if stream_end else "", highlight=False)


@contextmanager
def prompt_progress(console: Console, tokens: int, label: str) -> Generator[Callable[[int], None]]:
    """Show a bar over the tokens of a prompt: how many, how fast, how long still; yields what advances it."""
    columns = (
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} tokens"),
        _Speed(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(label, total=tokens)
        yield lambda count: progress.advance(bar, count)


@contextmanager
def waiting(console: Console, label: str) -> Generator[None]:
    """Show a spinner while something takes a while that cannot be foreseen."""
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), console=console, transient=True) as progress:
        progress.add_task(label, total=None)
        yield


def outcome_table(run: Run, cache: KIVCache, tally: Tally) -> Table:
    """Return the table that ends a run.

    Parameters
    ----------
    run : Run
        The run through the KIV cache.
    cache : KIVCache
        At its end: positions of a layer and bytes of all layers are told.
    tally : Tally
        Of its decode steps.
    """
    tokens, memory = cache.tokens(), cache.memory()
    table = Table(show_header=False, title="What KIV held")
    table.add_column(style="bold")
    table.add_column()
    table.add_row("context", f"{sum(tokens):,} tokens: {run.prompt_tokens:,} read, the others written")
    table.add_row(
        "tokens by tier",
        f"{tokens.sinks:,} sinks, {tokens.hot:,} hot, {tokens.cold_ram:,} cold in RAM, {tokens.cold_disk:,} on disk",
    )
    table.add_row(
        "bytes by tier",
        f"{format_bytes(memory.device)} device, {format_bytes(memory.ram)} RAM, {format_bytes(memory.disk)} disk",
    )
    table.add_row("reading", f"{run.prompt_tokens / run.prefill_s:,.0f} tokens/s")
    table.add_row("decoding", decode_text(run))
    table.add_row("operations", getattr(cache.pool, "operations", type(cache.pool).__name__))
    table.add_row("exact attention", getattr(cache.pool, "exact_attention", type(cache.pool).__name__))
    table.add_row("cold tokens", cold_text(tally))
    if rows := getattr(cache.pool, "device_row_bytes", 0):
        table.add_row("rows on the device", kept_text(rows, tally))
    table.add_row("attention mass", mass_text(tally))
    return table


def decode_text(run: Run) -> str:
    """Say how long a decode step took on average."""
    return f"{1000 * sum(run.step_s) / len(run.step_s):.1f} ms a token" if run.step_s else "no step"


def cold_text(tally: Tally) -> str:
    """Say how many cold tokens were candidates, and how many of these a step of a layer attended exactly.

    And how often the index ranked so badly that candidates were doubled (SPEC 4.9), if it did.
    """
    cold = tally.cold_tokens
    if cold is None:
        return "no step"
    if cold.all == 0:
        return "none"
    if cold.selected == cold.all:
        return f"{cold.all:,.0f}, all attended exactly"
    told = f"{cold.candidates:,.0f} candidates of {cold.all:,.0f}, {cold.selected:,.0f} attended exactly"
    return f"{told}; candidates doubled in {tally.widened / tally.retrievals:.1%}" if tally.widened else told


def kept_text(nbytes: int, tally: Tally) -> str:
    """Say how much of the cold pages the device keeps, how much of what steps read that was, and what came from RAM."""
    if not tally.cold_bytes:
        return f"{format_bytes(nbytes)}, not read yet"
    share, bus = tally.kept_bytes / tally.cold_bytes, (tally.cold_bytes - tally.kept_bytes) // tally.steps
    return f"{format_bytes(nbytes)}, {share:.1%} of the bytes that steps read; {format_bytes(bus)} a token over the bus"


def mass_text(tally: Tally) -> str:
    """Say which share of the attention mass was held exactly and which was estimated, over the decode steps."""
    if tally.exact_mass is None or tally.estimated_mass is None:
        return "no step"
    return f"{tally.exact_mass:.2%} held exactly, {tally.estimated_mass:.2%} estimated"
