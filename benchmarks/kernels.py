"""What the Triton kernels of a decode step take of each card: registers, spills, shared memory. Nothing is run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
from tqdm import tqdm

from .ahead import CARDS, GEOMETRIES, OLDEST, asked, launches, resources
from .options import parse, parser
from .report import Result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

QUICK = ("sm_90", "gfx1100")
BACKENDS = ("cuda", "hip")

TOGETHER = "The most of all geometries"


def measure(geometries: Sequence[str], cards: Sequence[str], result: Result, together: bool = False) -> None:
    """Compile every launch of a step of each geometry for each card, and tabulate; or the most of all `together`."""
    recorded = [[launches(asked(GEOMETRIES[name]), backend) for backend in BACKENDS] for name in geometries]
    todo = [(name, *same) for name, each in zip(geometries, recorded, strict=True) for same in zip(*each, strict=True)]
    tables = dict[str, dict[tuple[str, str | None], dict[str, tuple[int, ...]]]]()
    for name, *same in tqdm(todo, disable=None, leave=False):
        title, programs = (TOGETHER, None) if together else (name, " x ".join(map(str, same[0].grid)))
        row = tables.setdefault(title, {}).setdefault((same[0].name, programs), dict.fromkeys(cards, (0, 0, 0)))
        for card in cards:
            launch = same[BACKENDS.index(CARDS[card].backend)]
            row[card] = tuple(map(max, row[card], resources(launch, CARDS[card])))
    for title, rows in tables.items():
        table = result.table(f"{title}: registers / spilled bytes / KB of shared memory", "kernel", "programs", *cards)
        for (kernel, programs), taken in rows.items():
            cells = (f"{registers} / {spills} / {shared / 1024:.0f}" for registers, spills, shared in taken.values())
            table.add(kernel, programs, *cells)
    first, *_ = tables.values()
    result.series |= {card: {kernel: taken[card][0] for (kernel, _), taken in first.items()} for card in cards}
    each = [(CARDS[card], taken[card]) for rows in tables.values() for taken in rows.values() for card in cards]
    spilled = max(taken[1] for card, taken in each if card.backend == "cuda")
    result.target("spills on NVIDIA", 0, spilled, "bytes")
    result.target(
        "shared memory of a program, of what the card has", 1, max(taken[2] / card.shared for card, taken in each)
    )
    result.notes.append(
        "On AMD the second number counts registers that are spilled, not bytes; programs are those on NVIDIA."
    )


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
    made = parser("kernels", __doc__)
    made.add_argument("--oldest", action="store_true", help="one table, of the oldest Triton that is supported")
    options = parse(made, argv)
    name, cards = ("kernels_oldest", OLDEST) if options.oldest else ("kernels", [*CARDS])
    cards, geometries = (QUICK, [*GEOMETRIES][:1]) if options.quick else (cards, [*GEOMETRIES])
    result = Result(name, "Triton kernels, compiled ahead of time", {"triton": triton.__version__})
    measure(geometries, cards, result, options.oldest)
    result.write(options.out, draw)
    print(result.markdown())
    return result
