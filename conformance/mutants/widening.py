"""Faults in widening (SPEC 4.9)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kiv_reference import KIVConfig, block, select

from .patching import mutant, reworded
from .retrieval import more

if TYPE_CHECKING:
    import torch

LATE, CHOOSE, FEW = (select, "late"), (block, "choose"), (select, "LATE")


@mutant("never widens", LATE, look="4.9")
def _(original: Any) -> Any:
    return lambda *_: False


@mutant("always widens", LATE, look="4.9")
def _(original: Any) -> Any:
    return lambda *_: True


@mutant("widens by R / 8", FEW, look="4.9")
def _(original: Any) -> Any:
    return 8


@mutant("widens by R / 32", FEW, look="4.9")
def _(original: Any) -> Any:
    return 32


EARLY = "3 * config.candidate_tokens // 4"
FIRST = "ranked[: config.candidate_tokens].sort().values[:early]"
reworded("late ones that must be are counted", LATE, " - max(0, selected.numel() - early)", "", look="4.9")
reworded("late beyond the better half", LATE, EARLY, "config.candidate_tokens // 2", look="4.9")
reworded("three quarters of the candidates rounded up", LATE, EARLY, "-(-3 * config.candidate_tokens // 4)", look="4.9")
reworded("widens by as many as may be late", LATE, "> selected.numel()", ">= selected.numel()", look="4.9")
reworded("R / 16 rounded up", LATE, "> selected.numel()", "> -(-selected.numel() // LATE) * LATE", look="4.9")
reworded("late by position instead of rank", LATE, "ranked[:early]", FIRST, look="4.9")
reworded("widened to 4 C", CHOOSE, "2 * most", "4 * most", look="4.9")
reworded("widened, and not reported", CHOOSE, "widened=True", "widened=False", look="4.9")
reworded("widened where all are candidates", CHOOSE, "ranked.numel() <= most or ", "", look="4.9")
AGAIN = "Retrieval(candidates, select_tokens(view, members, candidates, scale, config)"
reworded("widened, and not selected anew", CHOOSE, AGAIN, "Retrieval(candidates, selected", look="4.9")


@mutant("widens twice", (block, "choose"), look="4.9")
def _(original: Any) -> Any:
    def changed(view: Any, members: Any, ranked: torch.Tensor, scale: float, config: KIVConfig) -> Any:
        chosen = original(view, members, ranked, scale, config)
        if not chosen.widened:
            return chosen
        twice = more(config, candidate_tokens=config.candidate_tokens)
        return original(view, members, ranked, scale, twice)._replace(widened=True)

    return changed
