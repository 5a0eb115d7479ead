"""What ``kiv plan`` predicts of a stage, where it predicts the card, to stand beside what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psutil
import torch
from kiv_hf.cli.plan.cards import CARDS
from kiv_hf.cli.plan.layout import lay_out
from kiv_hf.cli.plan.timetable import timetable
from kiv_hf.cli.plan.wish import Wish

from .gpu_needs import sizes_of

if TYPE_CHECKING:
    from .gpu_sizes import Geometry, Sizes


def predicted(geometry: Geometry, tokens: int, kind: str, card_name: str, sizes: Sizes) -> dict[str, Any]:
    """Return ``{"predicted": ...}`` under the names of what a stage measures; nothing for other cards and caches.

    Steps are those launched from Python, as they are measured.
    """
    card = next((card for card in CARDS if card_name.removeprefix("NVIDIA ") in card.cuda_names), None)
    if card is None or kind not in ("kiv", "plain"):
        return {}
    ram, chunk = psutil.virtual_memory().total, sizes.prompt_chunk
    wish = Wish(sizes.config, tokens, card.memory, ram, None, torch.bfloat16, None, chunk)
    layout = lay_out(sizes_of(geometry), wish)
    (times,) = timetable(sizes_of(geometry), wish, layout, (card,), [])
    if kind == "plain":
        return {"predicted": {"step_ms": 1e3 * times.plain.eager}} if times.plain else {}
    if layout.reasons or times.step is None or times.chunk_s is None:
        return {}
    found = {"step_ms": 1e3 * times.step.eager, "prefill_chunk_ms": 1e3 * times.chunk_s, "prefill_s": times.prefill_s}
    device = layout.held.device + layout.step + layout.rows
    return {"predicted": {**found, "tiers": {"device": device, "ram": layout.held.ram}}}
