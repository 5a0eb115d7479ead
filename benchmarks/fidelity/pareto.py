"""The picture: error of the attention output against device bytes and against bytes moved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Draw = Callable[["Figure"], None]
Points = Mapping[str, Mapping[str, float]]

AXES = {"device": "device MB at 1M tokens", "moved": "MB moved to the device a step"}

FAMILIES = {
    "KIV": ("#1f77b4", "o"),
    "Quest": ("#d62728", "s"),
    "the original": ("#ff7f0e", "^"),
    "sinks": ("#7f7f7f", "v"),
}
"""First word of a rule's name -> colour and marker; any other rule is an oracle."""

ORACLE_LOOK = ("#2ca02c", "*")


def _look(name: str) -> tuple[str, str]:
    return next((look for start, look in FAMILIES.items() if name.startswith(start)), ORACLE_LOOK)


def _front(points: Points, cost: str) -> list[tuple[float, float]]:
    """Cost and error of the rules of KIV that none of them beats in both."""
    mine = sorted((p[cost], p["error"]) for name, p in points.items() if name.startswith("KIV"))
    front: list[tuple[float, float]] = []
    for place in mine:
        if not front or place[1] < front[-1][1]:
            front.append(place)
    return front


def _panel(axes: Axes, points: Points, cost: str) -> None:
    front = _front(points, cost)
    for name, point in points.items():
        place = (point[cost], point["error"])
        colour, marker = _look(name)
        if colour == ORACLE_LOOK[0]:  # no real cost: how low an error can be
            if cost == "device":
                axes.axhline(point["error"], color=colour, linewidth=0.7, linestyle=":")
                axes.annotate(name, (0.01, point["error"]), xycoords=("axes fraction", "data"), fontsize=5)
            continue
        axes.scatter(*place, color=colour, marker=marker, s=20, zorder=3)
        if place in front or not name.startswith("KIV"):
            axes.annotate(name, place, fontsize=5.5, xytext=(4, 3), textcoords="offset points")
    if front:
        axes.plot(*zip(*front, strict=True), color=FAMILIES["KIV"][0], linewidth=0.8)
    if cost == "moved":
        axes.set_xscale("symlog", linthresh=1.0)
    else:
        axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(AXES[cost])
    axes.grid(alpha=0.3, which="both")


def painter(models: Mapping[str, Points]) -> Draw:
    """Return a function that paints a row of panels for each model: title -> rule -> error and costs."""

    def draw(figure: Figure) -> None:
        figure.set_size_inches(13, 5 * len(models))
        grid = figure.subplots(len(models), len(AXES), squeeze=False)
        for row, (title, points) in zip(grid, models.items(), strict=True):
            for axes, cost in zip(row, AXES, strict=True):
                _panel(axes, points, cost)
            row[0].set_ylabel("mean error of the attention output")
            row[0].set_title(title, loc="left", fontsize=9)

    return draw
