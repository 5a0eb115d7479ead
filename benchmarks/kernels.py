"""What the Triton kernels of a decode step take of each card: registers, spills, shared memory. Nothing is run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
from tqdm import tqdm

from .ahead import CARDS, GEOMETRIES, asked, launches, resources
from .options import parse, parser
from .report import Result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

QUICK = ("sm_90",)


def measure(geometries: Sequence[str], cards: Sequence[str], result: Result) -> None:
    """Compile every launch of a step of each geometry for each card, and tabulate."""
    spilled = shared = 0
    todo = [(name, launch) for name in geometries for launch in launches(asked(GEOMETRIES[name]))]
    tables = {
        name: result.table(f"{name}: registers / spilled bytes / KB of shared memory", "kernel", "programs", *cards)
        for name in geometries
    }
    for name, launch in tqdm(todo, disable=None, leave=False):
        cells = list[str]()
        for card in cards:
            registers, spills, memory = resources(launch, CARDS[card])
            cells.append(f"{registers} / {spills} / {memory / 1024:.0f}")
            if name == geometries[0]:
                result.series.setdefault(card, {})[launch.name] = registers
            spilled = max(spilled, spills if CARDS[card].backend == "cuda" else 0)
            shared = max(shared, memory / CARDS[card].shared)
        tables[name].add(launch.name, " x ".join(map(str, launch.grid)), *cells)
    result.target("spills on NVIDIA", 0, spilled, "bytes")
    result.target("shared memory of a program, of what the card has", 1, shared)
    result.notes.append("On AMD the second number counts registers that are spilled, not bytes.")


def draw(figure: Figure, result: Result) -> None:
    """Draw the registers of each kernel on each card, of the first geometry."""
    panel, names = figure.subplots(), [*next(iter(result.series.values()))]
    for place, (card, kernels) in enumerate(result.series.items()):
        at = [number + 0.8 * place / len(result.series) for number in range(len(names))]
        panel.bar(at, [*kernels.values()], 0.8 / len(result.series), label=card)
    panel.set_xticks([number + 0.4 for number in range(len(names))], names)
    panel.set(ylabel="registers of a thread", title=result.title)
    panel.legend(ncols=2)


def main(argv: list[str] | None = None) -> Result:
    """Run the benchmark."""
    options = parse(parser("kernels", __doc__), argv)
    cards, geometries = (QUICK, [*GEOMETRIES][:1]) if options.quick else ([*CARDS], [*GEOMETRIES])
    result = Result("kernels", "Triton kernels, compiled ahead of time", {"triton": triton.__version__})
    measure(geometries, cards, result)
    result.write(options.out, draw)
    print(result.markdown())
    return result
