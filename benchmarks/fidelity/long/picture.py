"""The picture: recall against the share of candidates, and against bytes of index, a column for each model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.models import MODELS

from .documents import LongDocument
from .measure import KINDS
from .tables import NAMES, percent
from .zoo import DOUBLED, EXACT, NEW, ORIGINAL, QUEST

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from benchmarks.report import Result

NAMED_SHARE = 0.016
"""Share of candidates in the lower row."""

SHOWN = (
    LongDocument("smollm2", "kjv", 8000),
    LongDocument("gemma", "kjv", 100000),
    LongDocument("qwen", "code", 26000),
    LongDocument("gemma", "kjv", None),
)
"""Documents in the picture, as far as they were measured."""

LINES = {
    EXACT.name: ("#2ca02c", "--", "exact keys"),
    NEW.name: ("#1f77b4", "-", "KIV: codes of 64 channels"),
    "clusters of 16 (as RetroInfer)": ("#9467bd", "-", "RetroInfer's clusters"),
    QUEST.name: ("#d62728", "-", "Quest"),
    "KIV before: pages of 64, mean + 0.5 spread": ("#7f7f7f", "-", "KIV before: pages of 64"),
    ORIGINAL.name: ("#ff7f0e", "-", "the original KIV's rule"),
}
"""Index -> colour, line and label in the upper row; two of them are only in results of the tag `experiments-1`."""

ABOVE, BELOW, RIGHT = ((0, 6), "center"), ((0, -13), "center"), ((5, -8), "left")
LABELS = {
    ORIGINAL.name: ("the original's rule", BELOW),
    "clusters of 16 (as RetroInfer)": ("RetroInfer's clusters", ABOVE),
    "4-bit cache of everything": ("4-bit cache", RIGHT),
    "codes of 64 channels, chosen by keys alone": ("64, by keys alone", RIGHT),
}
"""Labels in the lower row, and where those are that would cover another index to the right."""


def points(record: dict[str, Any]) -> dict[str, Any]:
    """Return what the picture needs of a record: bytes of each index, and its recall with each number of candidates."""
    of_indices = {
        name: {"index_bytes": measured["index_bytes"], "recall": [recall(found) for found in measured["found"]]}
        for name, measured in record["indices"].items()
        if name != DOUBLED.name
    }
    return {name: record[name] for name in ("tokens", "cold", "candidates")} | {"indices": of_indices}


def recall(found: dict[str, Any]) -> float:
    """Return the recall of the heaviest 4, the mean of text and questions."""
    values = [found[kind]["top4"] for kind in KINDS if found[kind]["top4"] is not None]
    return sum(values) / len(values)


def shown(series: Mapping[str, Any]) -> dict[str, str]:
    """Return title -> name of the documents in the picture: those of `SHOWN`, or whatever there is."""
    found: dict[str, str] = {}
    for document in SHOWN:
        if document.name in series:
            tokens = series[document.name]["tokens"]
            found[f"{MODELS[document.model].title}, {tokens / 1000:,.0f}K of {NAMES[document.text]}"] = document.name
    return found or {name: name for name in series}


def draw(figure: Figure, result: Result) -> None:
    """Fill the figure."""
    series = result.series
    documents = shown(series)
    figure.set_size_inches(5 * len(documents), 8.5)
    panels = figure.subplots(2, len(documents), squeeze=False, sharey="row")
    for column, (title, name) in enumerate(documents.items()):
        _by_share(panels[0, column], series[name])
        _by_bytes(panels[1, column], series[name])
        panels[0, column].set_title(title, fontsize=10)
    panels[0, 0].set_ylabel("recall of the heaviest 4 cold tokens")
    panels[1, 0].set_ylabel(f"the same at {percent(NAMED_SHARE)}")
    panels[0, 0].legend(fontsize=8, loc="lower left")


def _by_share(axes: Axes, record: dict[str, Any]) -> None:
    shares = [100 * count / record["cold"] for count in record["candidates"]]
    for name, (colour, line, label) in LINES.items():
        if name in record["indices"]:
            recalls = record["indices"][name]["recall"]
            axes.plot(shares, recalls, line, color=colour, label=label, marker="o", markersize=3)
    axes.set_xscale("log")
    axes.invert_xaxis()
    ticks = [round(share, 1) for share in shares]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("candidates, % of the cold tokens")
    axes.grid(alpha=0.3)


def _by_bytes(axes: Axes, record: dict[str, Any]) -> None:
    shares = [count / record["cold"] for count in record["candidates"]]
    at = min(range(len(shares)), key=lambda i: abs(shares[i] - NAMED_SHARE))
    for name, measured in record["indices"].items():
        if name == EXACT.name:
            continue
        colour = LINES[name][0] if name in LINES else "#aec7e8" if name.startswith("codes") else "#bbbbbb"
        place = (measured["index_bytes"], measured["recall"][at])
        axes.scatter(*place, color=colour, s=60 if name == NEW.name else 25, zorder=3)
        if name.endswith("channels"):  # many lie close together: their numbers alone
            label, (offset, align) = name.removeprefix("codes of ").removesuffix(" channels"), ABOVE
        else:
            label, (offset, align) = LABELS.get(name, (name.split(":")[0].split(",")[0], RIGHT))
        axes.annotate(label, place, offset, textcoords="offset points", fontsize=7, ha=align)
    axes.set_xscale("log")
    axes.margins(x=0.25, y=0.1)
    axes.set_xlabel("bytes of index a token (numbers: coded channels)")
    axes.grid(alpha=0.3)
