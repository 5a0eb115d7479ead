"""Upper limits beside what was measured, and how figures are shown; without what draws pictures."""

from __future__ import annotations

from dataclasses import dataclass

Cell = str | int | float | None


@dataclass
class Target:
    """An upper limit that a measured value was to keep."""

    name: str
    limit: float
    measured: float | None
    unit: str = ""

    @property
    def verdict(self) -> str:
        """Compare: "met", "missed by …", or "not measured"."""
        if self.measured is None:
            return "not measured"
        if self.measured <= self.limit:
            return "met"
        return f"missed by {self.measured / self.limit - 1:.1%}" if self.limit else "missed"


def show(cell: Cell) -> str:
    """Show three significant digits of floats, thousands of integers separated, "-" for what was not measured."""
    if cell is None:
        return "-"
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"
    return cell


def short(tokens: int) -> str:
    """Show 4096 as "4K", 1048576 as "1M"."""
    for unit, name in ((2**20, "M"), (2**10, "K")):
        if tokens >= unit and tokens % unit == 0:
            return f"{tokens // unit}{name}"
    return str(tokens)
