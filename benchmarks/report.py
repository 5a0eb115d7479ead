"""One result: tables, targets, notes and what a picture needs, written as JSON, Markdown and a PNG under one header."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from .machine import header
from .target import Cell, Target, short, show

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

DIGITS, LINE = 6, 200
"""Significant digits of a series, and the longest line, in the JSON of a result."""

SHARES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)
"""Quantiles that stand for a long series."""


@dataclass
class Table:
    """Rows under a title; a cell that was not measured is None."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[Cell]] = field(default_factory=list)

    def add(self, *cells: Cell) -> None:
        """Add a row."""
        assert len(cells) == len(self.columns)
        self.rows.append(cells)

    def markdown(self) -> str:
        """Render as a Markdown table."""
        lines = [self.columns, ["---"] * len(self.columns), *([show(cell) for cell in row] for row in self.rows)]
        return "\n".join(["**" + self.title + "**", "", *("| " + " | ".join(line) + " |" for line in lines)])


@dataclass
class Result:
    """What one benchmark found.

    Attributes
    ----------
    name : stem of the files
    title : what was measured, in a line
    settings : what the run was asked to do
    series : what the picture needs beside the tables
    """

    name: str
    title: str
    settings: dict[str, Any]
    head: dict[str, str] = field(default_factory=header)
    tables: list[Table] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    series: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Result:
        """Read a result from the JSON that `write` made."""
        content = json.loads(path.read_text(encoding="utf-8"))
        for name, kind in (("tables", Table), ("targets", Target)):
            content[name] = [kind(**item) for item in content[name]]
        return cls(**content)

    def table(self, title: str, *columns: str) -> Table:
        """Start a new table."""
        self.tables.append(Table(title, columns))
        return self.tables[-1]

    def target(self, name: str, limit: float, measured: float | None, unit: str = "") -> None:
        """Note a measured value beside the limit that it was to keep."""
        self.targets.append(Target(name, limit, measured, unit))

    def markdown(self) -> str:
        """Render all but the series."""
        lines = [f"# {self.title}", ""]
        lines += [f"- {key}: {value}" for key, value in self.head.items()]
        lines += ["- settings: " + ", ".join(f"{key} {value}" for key, value in self.settings.items()), ""]
        if self.targets:
            verdicts = Table("Targets", ("target", "limit", "measured", "verdict"))
            for target in self.targets:
                unit = f" {target.unit}" if target.unit else ""
                verdicts.add(target.name, f"≤ {show(target.limit)}{unit}", show(target.measured) + unit, target.verdict)
            lines += [verdicts.markdown(), ""]
        for table in self.tables:
            lines += [table.markdown(), ""]
        lines += [f"{note}\n" for note in self.notes]
        return "\n".join(lines).rstrip() + "\n"

    def write(self, folder: Path, draw: Callable[[Figure, Result], object]) -> None:
        """Write ``<name>.json``, and from it ``<name>.md`` and ``<name>.png``, into `folder`; `draw` fills a figure."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        content = asdict(self) | {"series": rounded(self.series)}
        path.write_text(written(content) + "\n", encoding="utf-8")
        kept = Result.read(path)
        path.with_suffix(".md").write_text(kept.markdown(), encoding="utf-8")
        figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
        draw(figure, kept)
        figure.savefig(path.with_suffix(".png"))


def rounded(value: Any) -> Any:
    """Round every float in nested lists and dictionaries to `DIGITS` significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: rounded(part) for key, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, (list, tuple)) else value


def written(value: Any, indent: str = "") -> str:
    """Return JSON with a list or dictionary on one line where it fits, else an item a line."""
    flat = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if len(indent + flat) <= LINE or not isinstance(value, (dict, list)):
        return flat
    deeper = indent + " "
    if isinstance(value, dict):
        items = [f"{json.dumps(key, ensure_ascii=False)}:{written(part, deeper)}" for key, part in value.items()]
    else:
        items = [written(part, deeper) for part in value]
    begin, end = "{}" if isinstance(value, dict) else "[]"
    return f"{begin}\n{deeper}" + f",\n{deeper}".join(items) + f"\n{indent}{end}"


def quantiles(values: Sequence[float]) -> list[float]:
    """Return the quantiles of `values` at `SHARES`."""
    return np.quantile(np.asarray(values), SHARES).tolist()


def token_axis(panel: Axes, ticks: Sequence[int]) -> None:
    """Make the horizontal axis of `panel` a logarithmic one of contexts, and finish the panel."""
    panel.set_xscale("log", base=2)
    panel.set_xticks(ticks, [short(tick) for tick in ticks])
    panel.set_xlabel("context, tokens")
    panel.grid(alpha=0.3)
    panel.legend()


def quantile_panel(panel: Axes, lines: Mapping[str, Sequence[float]]) -> None:
    """Draw the quantiles of several series of milliseconds, a line each, and finish the panel."""
    for name, values in lines.items():
        panel.plot([100 * share for share in SHARES], values, ".-", label=name)
    panel.set(xlabel="share of steps that take no longer, %", ylabel="ms")
    panel.grid(alpha=0.3)
    panel.legend()
