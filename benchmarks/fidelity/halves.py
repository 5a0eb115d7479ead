"""Two halves of the data that share no text and no position: one to choose on, one to report."""

from __future__ import annotations

from collections.abc import Mapping

from .attention_level import MAIN_LENGTHS
from .capture import TEXTS
from .measure import Cell, Statistics, cells

CHOSEN_ON, REPORTED = "chosen on", "reported"


def halves(model: str, quick: bool, all_layers: bool = False) -> dict[str, tuple[list[Cell], slice]]:
    """Scenes and queries of the half to choose on, and of the half to report.

    Parameters
    ----------
    all_layers : bool
        Whether every layer is in both halves: what is chosen for a layer can be reported for that layer alone. Else
        layers take turns, where a model has enough of them.
    """
    shared = all_layers or model == "gemma"
    made: dict[str, tuple[list[Cell], slice]] = {}
    for part, (name, text) in enumerate(zip((CHOSEN_ON, REPORTED), TEXTS, strict=True)):
        lengths = MAIN_LENGTHS[model][:1] if quick else MAIN_LENGTHS[model]
        found = [c for n in lengths for c in cells(model, text, n) if shared or c.rank % 2 == part]
        few = 3 if all_layers else 1
        made[name] = (found[:few] if quick else found, slice(4 * part, None, 8))
    return made


def changes(mine: Mapping[str, Statistics], base: Mapping[str, Statistics]) -> list[str]:
    """How the mean error differs from another's on either half, by the name of the half; as percentages."""
    return [f"{mine[half].mean / base[half].mean - 1:+.1%}" for half in (CHOSEN_ON, REPORTED)]
