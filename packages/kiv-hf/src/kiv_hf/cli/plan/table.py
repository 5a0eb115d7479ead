"""What the user sees of a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from ..terminal import printable
from ..units import format_bytes
from .measured import CHUNK_TOKENS
from .outcome import Outcome, command, knobs, tiers

if TYPE_CHECKING:
    from rich.console import Console

    from .times import StepTime
    from .timetable import CardTimes

WIDE_COLUMNS = 100
"""Narrower terminals get a line for each time of a card, not a column."""


def show(outcome: Outcome, out: Console) -> None:
    """Print tables, what does not fit and what would, knobs and command."""
    layout, wish = outcome.layout, outcome.wish
    _say(out, f"{outcome.model}, {wish.tokens:,} tokens")
    out.print(_lies_where(outcome))
    fit = "fits" if layout.plain <= wish.device_memory else "does not fit"
    _say(out, f"A plain cache {fit}: {format_bytes(layout.plain)} on the device (predicted).")
    out.print(_times(outcome, out.width >= WIDE_COLUMNS))
    for one in outcome.times:
        if one.told:
            took = f"took {format_s(one.measured_chunk_s)}, predicted {format_s(one.chunk_s)}"
            last = f"{CHUNK_TOKENS:,} tokens at the end of the prompt {took}"
            _say(out, f"Measured on {one.name} ({one.told}; random weights): {last}.")
    for note in outcome.notes:
        _say(out, f"Note: {note}", "yellow")
    if layout.reasons:
        for reason in layout.reasons:
            _say(out, f"Does not fit: it needs {reason}.", "red")
        for remedy in outcome.remedies:
            _say(out, f"It would fit with {remedy}.")
        return
    _say(out, f"Fits, by prediction, in {format_bytes(wish.device_memory)} of device memory.", "green")
    if outcome.asks:
        out.print(Text(printable(command(outcome))), soft_wrap=True, highlight=False)
    else:
        found = ", ".join(f"{name}={value}" for name, value in knobs(layout).items() if value is not None)
        _say(out, f"Knobs: {found}")


def _say(out: Console, text: str, style: str | None = None) -> None:
    out.print(Text(printable(text)), style=style, highlight=False)


def _lies_where(outcome: Outcome) -> Table:
    layout, wish = outcome.layout, outcome.wish
    table = Table(title="What lies where (predicted)")
    table.add_column("tier", overflow="fold")
    table.add_column("what", overflow="fold")
    table.add_column("bytes", justify="right", overflow="fold")
    totals = {"device": layout.device, "RAM": layout.ram, "disk": layout.held.pages_on_disk}
    limits = {"device": wish.device_memory, "RAM": wish.ram, "disk": wish.disk}
    for tier, parts in tiers(layout).items():
        for what, count in parts.items():
            if count:
                table.add_row(tier, what, format_bytes(count))
        limit = limits[tier]
        of = "" if limit is None else f" of {format_bytes(limit)}"
        table.add_row(tier, Text("all", style="bold"), f"{format_bytes(totals[tier])}{of}", end_section=True)
    return table


def _times(outcome: Outcome, wide: bool) -> Table:
    """Return a row for each card, or on a narrow terminal a section."""
    title = (
        f"Times{' if it did fit' if outcome.layout.reasons else ''}, reading {outcome.layout.chunk:,} tokens at once"
    )
    names = (
        "prefill, predicted", "a token, predicted", "plain cache, predicted", "a token, measured",
        "plain cache, measured",
    )  # fmt: skip
    table = Table(title=title, show_header=wide)
    table.add_column("card", overflow="fold")
    for name in names if wide else ("",):
        table.add_column(name, justify="right", overflow="fold")
    for one in outcome.times:
        cells = _cells(one)
        card = printable(one.name) + _too_small(one, outcome)
        if wide:
            table.add_row(card, *cells)
            continue
        table.add_row(Text(card, style="bold"), "")
        for name, cell in zip(names, cells, strict=True):
            table.add_row(name, cell, end_section=name == names[-1])
    return table


def _cells(one: CardTimes) -> list[str]:
    return [
        format_s(one.prefill_s),
        _both(one.step),
        _both(one.plain),
        format_s(one.measured_step_s),
        format_s(one.measured_plain_s),
    ]


def _both(step: StepTime | None) -> str:
    if step is None:
        return "-"
    graph, eager = format_s(step.graph), format_s(step.eager)
    return graph if graph == eager else f"{graph}, {eager} from Python"


def _too_small(one: CardTimes, outcome: Outcome) -> str:
    if one.memory is None or one.memory >= outcome.layout.device:
        return ""
    return f" (has {format_bytes(one.memory)})"


def format_s(seconds: float | None) -> str:
    """Write a time with three digits, as in 12.3 ms, 45.6 s or 12 min; "-" where there is none."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{1e3 * seconds:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 600 else f"{seconds / 60:,.0f} min"
