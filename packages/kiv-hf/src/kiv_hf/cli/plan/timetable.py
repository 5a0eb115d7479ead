"""Predicted times of one plan on each card, with what was measured beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .measured import CHUNK_TOKENS, Measured, geometry_of
from .times import StepTime, Work, chunk_s, kiv_step, plain_step, prefill_s, step_time

if TYPE_CHECKING:
    from ..sizes.model import ModelSizes
    from .cards import Card
    from .layout import Layout
    from .wish import Wish


@dataclass(frozen=True)
class CardTimes:
    """Times on one card.

    Attributes
    ----------
    name : str
    memory : int or None
        Bytes that the card has; None where it was measured and is not among those that are predicted.
    prefill_s, step, plain, chunk_s : predicted, the last of `CHUNK_TOKENS` at the end; None where nothing is
    measured_step_s, measured_chunk_s, measured_plain_s : of a run on this card; None where there is none
    told : str
        Where the measured figures come from.
    """

    name: str
    memory: int | None
    prefill_s: float | None = None
    step: StepTime | None = None
    plain: StepTime | None = None
    chunk_s: float | None = None
    measured_step_s: float | None = None
    measured_chunk_s: float | None = None
    measured_plain_s: float | None = None
    told: str = ""


def timetable(
    sizes: ModelSizes, wish: Wish, layout: Layout, cards: tuple[Card, ...], measured: list[Measured]
) -> list[CardTimes]:
    """Predict the times on each card; cards that were only measured follow."""
    weight_bytes = sizes.weights.read_bytes(wish.dtype, wish.bits)
    work = Work(sizes, weight_bytes, wish.dtype, layout.config, wish.tokens, layout.rows > 0, layout.disk_share)
    moved, plain = kiv_step(work), plain_step(work)
    found = [one for one in measured if _is_of(one, sizes, wish)]
    times: list[CardTimes] = []
    for card in cards:
        n = min(CHUNK_TOKENS, wish.tokens)
        seconds = prefill_s(work, layout.chunk, card), chunk_s(work, wish.tokens - n, n, card)
        predicted = seconds[0], step_time(moved, card), step_time(plain, card), seconds[1]
        mine = [one for one in found if one.card in card.cuda_names]
        times.append(CardTimes(card.name, card.memory, *predicted, *_figures(mine)))
    known = {name for card in cards for name in card.cuda_names}
    for name in sorted({one.card for one in found} - known):
        mine = [one for one in found if one.card == name]
        times.append(CardTimes(name, None, None, None, None, None, *_figures(mine)))
    return times


def _is_of(one: Measured, sizes: ModelSizes, wish: Wish) -> bool:
    """Tell whether a measured figure is of this model, context and dtype, with the knobs that the benchmark has."""
    defaults = type(wish.config)()
    plain_knobs = wish.config == defaults and wish.bits is None and wish.dtype == torch.bfloat16
    return plain_knobs and one.geometry == geometry_of(sizes) and one.tokens == wish.tokens


def _figures(found: list[Measured]) -> tuple[float | None, float | None, float | None, str]:
    kiv = next((one for one in found if one.cache == "kiv"), None)
    plain = next((one for one in found if one.cache == "plain"), None)
    told = next((one.told for one in (kiv, plain) if one is not None), "")
    return (
        None if kiv is None else kiv.step_s,
        None if kiv is None else kiv.chunk_s,
        None if plain is None else plain.step_s,
        told,
    )
