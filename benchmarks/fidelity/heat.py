"""The picture of the task level: needles by depth and length, full attention and each cache beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from benchmarks.models import MODELS
from benchmarks.report import short

from .systems import FULL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = (FULL, "KIV", "the original KIV's rule", "sinks + window")
MISSING, WRONG, RIGHT = 0, 1, 2
COLOURS = ("#e4e4e4", "#d9534f", "#4f9d69")
LABELS = ("full attention does not find it", "lost by the cache", "found")


def state(outcome: dict[str, Any], name: str) -> int:
    """What a system made of a needle; only what full attention finds can be lost."""
    if not outcome["right"][FULL]:
        return MISSING
    return RIGHT if outcome["right"].get(name) else WRONG


def painter(outcomes: Sequence[dict[str, Any]]) -> Callable[[Figure], None]:
    """Return the painter: a row for each model, a panel for each system."""
    needles = [o for o in outcomes if o["task"] == "needle"]

    def paint(figure: Figure) -> None:
        models = list(dict.fromkeys(o["model"] for o in needles))
        lengths = [sorted({o["length"] for o in needles if o["model"] == model}) for model in models]
        figure.set_size_inches(9.5, 3.4 * len(models) + 0.6)
        grid = figure.subplots(len(models), len(SHOWN), squeeze=False, sharey=True)
        for row, model, columns in zip(grid, models, lengths, strict=True):
            here = [o for o in needles if o["model"] == model]
            for axes, name in zip(row, SHOWN, strict=True):
                _panel(axes, here, name, columns)
            row[0].set_ylabel(f"{MODELS[model].title}\ndepth", fontsize=9)
        handles = [Patch(color=colour, label=label) for colour, label in zip(COLOURS, LABELS, strict=True)]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9, frameon=False)

    return paint


def _panel(axes: Axes, here: Sequence[dict[str, Any]], name: str, lengths: Sequence[int]) -> None:
    depths = sorted({o["depth"] for o in here})
    cells = [[MISSING] * len(lengths) for _ in depths]
    for outcome in here:
        cells[depths.index(outcome["depth"])][lengths.index(outcome["length"])] = state(outcome, name)
    axes.imshow(cells, cmap=ListedColormap(COLOURS), vmin=MISSING, vmax=RIGHT, aspect="auto")
    found = sum(line.count(RIGHT) for line in cells)
    asked = sum(line.count(RIGHT) + line.count(WRONG) for line in cells)
    shown = f"{asked} of {len(here)} found" if name == FULL else f"{found} of these {asked} kept"
    axes.set_title(f"{name}\n{shown}", fontsize=9)
    axes.set_xticks(range(len(lengths)), [short(length) if length % 1024 == 0 else f"{length:,}" for length in lengths])
    axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
    axes.set_xticks([i + 0.5 for i in range(len(lengths) - 1)], minor=True)
    axes.set_yticks([i + 0.5 for i in range(len(depths) - 1)], minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0, labelsize=8)
    axes.set_xlabel("tokens", fontsize=8)
