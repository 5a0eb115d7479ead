"""The picture: error of the attention output against device bytes and against bytes moved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import log
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Draw = Callable[["Figure"], None]
Points = Mapping[str, Mapping[str, float]]

AXES = {"device": "device MB at 1M tokens", "moved": "MB moved to the device in a step"}

FAMILIES = {
    "Quest": ("#d62728", "s"),
    "the original": ("#ff7f0e", "^"),
    "sinks": ("#7f7f7f", "v"),
}
"""First word of a rule's name -> colour and marker; rules that look at every key are lines, all others are KIV's."""

KIV_LOOK = ("#1f77b4", "o")
DEFAULT = "KIV, default"
ORACLES = {
    "exact top-256, shared by the group": ("exact top-256", "left"),
    "page's true maximum, P 32 + tail": ("the best page score there can be, P 32", "left"),
}
"""Rules without a real cost -> how their line is called, and on which side: how low an error can be."""

LIMIT_MB = 100.0

BRIEF = {
    ", no sinks as published": ",\nno sinks",
    ", scale a channel": "",
    " + 0.5 spread ": " + ",
    "mean int": "int",
    " candidates x": " keys x",
}
"""Words of a rule's name -> what a label says for them."""


def _oracle(name: str) -> bool:
    return name in ORACLES or name.startswith(("exact", "ceiling", "page's"))


def _look(name: str) -> tuple[str, str]:
    return next((look for start, look in FAMILIES.items() if name.startswith(start)), KIV_LOOK)


def _front(points: Points, cost: str) -> list[str]:
    """Rules of KIV's kind that none of them beats in both error and cost, cheapest first."""
    mine = sorted((p[cost], p["error"], name) for name, p in points.items() if _look(name) == KIV_LOOK)
    front: list[tuple[float, str]] = []
    for _, error, name in mine:
        if not _oracle(name) and (not front or error < front[-1][0]):
            front.append((error, name))
    return [name for _, name in front]


def _label(axes: Axes, places: Mapping[str, tuple[float, float]]) -> None:
    """Name points, the first ones first; a name that would lie on another is left out."""
    low, high = axes.get_xlim(), axes.get_ylim()

    def at(place: tuple[float, float]) -> tuple[float, float]:
        spans = zip(place, (low, high), strict=True)
        return tuple((log(x) - log(a)) / (log(b) - log(a)) for x, (a, b) in spans)  # type: ignore[return-value]

    taken: list[tuple[float, float]] = []
    for name, place in places.items():
        x, y = at(place)
        # To the left of the default, the front's names go to the left: its line goes on to the right.
        left = x > 0.72 or (_look(name) == KIV_LOOK and DEFAULT in places and place[0] < places[DEFAULT][0])
        middle = x - 0.1 if left else x + 0.1
        if any(abs(middle - a) < 0.2 and abs(y - b) < 0.028 for a, b in taken):
            continue
        taken.append((middle, y))
        short = name.split(":")[0] if name.startswith("Quest") else name.removeprefix("KIV, ").split(": ")[-1]
        for long, brief in BRIEF.items():
            short = short.replace(long, brief)
        weight = "bold" if name == DEFAULT else "normal"
        side, shift = ("right", -7) if left else ("left", 7)
        axes.annotate(
            short, place, (shift, 0), textcoords="offset points", fontsize=8.5, weight=weight, ha=side, va="center"
        )


def _panel(axes: Axes, points: Points, cost: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    front = _front(points, cost)
    # What moves nothing is drawn at the edge of its axis.
    places = {name: (max(p[cost], 1.0), p["error"]) for name, p in points.items() if not _oracle(name)}
    for name, place in places.items():
        colour, marker = _look(name)
        bold = name in front or name == DEFAULT or colour != KIV_LOOK[0]
        size = 110 if name == DEFAULT else 45
        axes.scatter(*place, color=colour, marker=marker, s=size, zorder=3, alpha=1.0 if bold else 0.35, linewidth=0)
    if front:
        axes.plot(*zip(*(places[name] for name in front), strict=True), color=KIV_LOOK[0], linewidth=1)
    for name, (called, side) in ORACLES.items():
        if name in points:
            axes.axhline(points[name]["error"], color="#2ca02c", linewidth=0.9, linestyle="--", zorder=1)
            at = (0.01 if side == "left" else 0.99, points[name]["error"])
            style = {"ha": side, "va": "top" if side == "left" else "bottom", "color": "#1d7a1d", "fontsize": 8}
            axes.annotate(called, at, xycoords=("axes fraction", "data"), **style)
    if cost == "device":
        axes.axvline(LIMIT_MB, color="k", linewidth=0.8, linestyle=":")
    axes.margins(x=0.12, y=0.08)
    axes.autoscale_view()
    others = [name for name in places if _look(name) != KIV_LOOK]
    named = [DEFAULT, *others, *front]
    if any(": " in name for name in front):  # long names need room, to the left most of all
        low, high = axes.get_xlim()
        axes.set_xlim(low * (low / high) ** 0.7, high * (high / low) ** 0.25)
    _label(axes, {name: places[name] for name in named if name in places})
    axes.set_xlabel(AXES[cost])
    axes.grid(alpha=0.25, which="both")


def painter(models: Mapping[str, Points]) -> Draw:
    """Return a function that paints a row of panels for each model: title -> rule -> error and costs."""

    def draw(figure: Figure) -> None:
        figure.set_size_inches(13, 5.5 * len(models))
        grid = figure.subplots(len(models), len(AXES), squeeze=False)
        for row, (title, points) in zip(grid, models.items(), strict=True):
            for axes, cost in zip(row, AXES, strict=True):
                _panel(axes, points, cost)
            row[0].set_ylabel("mean error of the attention output")
            row[0].set_title(f"{title}; dotted: the limit of 100 MB; dashed: rules that look at every key", loc="left")

    return draw
