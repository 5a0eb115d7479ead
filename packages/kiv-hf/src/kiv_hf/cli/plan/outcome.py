"""A finished plan: its knobs, the command that has them, and all of it for programs."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from kiv_reference.config import KIVConfig

from .cards import CONTEXT_BYTES
from .layout import SYSTEM_BYTES, Layout

if TYPE_CHECKING:
    from .timetable import CardTimes
    from .wish import Wish

TOLD = ("hot_tokens", "sink_tokens", "page_tokens", "index_channels", "candidate_tokens", "retrieve_tokens")
"""Knobs that the command says where they are not the defaults."""


@dataclass(frozen=True)
class Outcome:
    """Everything that a plan found.

    Attributes
    ----------
    remedies : tuple of str
        What would make it fit, each by itself.
    notes : tuple of str
    asks : bool
        Whether ``kiv ask`` serves the model.
    """

    model: str
    wish: Wish
    layout: Layout
    remedies: tuple[str, ...]
    notes: tuple[str, ...]
    times: tuple[CardTimes, ...]
    asks: bool


def knobs(layout: Layout) -> dict[str, int | str | None]:
    """Return the knobs to set, by the names of `KIVConfig` and `kiv ask`; budgets that are None have no limit."""
    config, defaults = layout.config, KIVConfig()
    changed = {name: getattr(config, name) for name in TOLD if getattr(config, name) != getattr(defaults, name)}
    budgets = {name: getattr(config, name) for name in ("device_bytes", "ram_bytes", "disk_bytes")}
    return {**budgets, "chunk_tokens": layout.chunk, "hot_tokens": config.hot_tokens, **changed}


def command(outcome: Outcome) -> str:
    """Return the ``kiv ask`` that has these knobs."""
    words = ["kiv", "ask", "--model", outcome.model, "--file", "TEXT", "--device", "cuda"]
    for name, value in knobs(outcome.layout).items():
        if name == "retrieve_tokens" and value is None:
            words.append("--exact")
        elif value is not None and not (name == "hot_tokens" and value == KIVConfig.hot_tokens):
            text = f"{value // 10**6}MB" if name.endswith("_bytes") and isinstance(value, int) else str(value)
            words += [f"--{name.replace('_', '-')}", text]
    return shlex.join([*words, "QUESTION"])


def tiers(layout: Layout) -> dict[str, dict[str, int]]:
    """Return bytes by tier and by what they are for."""
    found = layout.held
    return {
        "device": {
            "CUDA and torch": CONTEXT_BYTES,
            "weights": layout.weights,
            "layers that are not KIV's": layout.others,
            "KIV: sinks and hot tokens": found.window,
            "KIV: index": found.index,
            "KIV: buffers of a step": found.buffers + layout.step,
            "KIV: more while a chunk is read": found.growth,
            "KIV: rows of the last steps": layout.rows,
            "computing a chunk, or a step": layout.work,
        },
        "RAM": {
            "system and libraries": SYSTEM_BYTES,
            "KIV: cold keys and values": found.pages_in_ram,
            "KIV: samples, errors, tables": found.notes,
            "KIV: rows read from disk": found.rows,
            "weights on their way": max(0, layout.ram - SYSTEM_BYTES - found.ram),
        },
        "disk": {"KIV: cold keys and values": found.pages_on_disk},
    }


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Lay out a plan for programs; every figure is predicted but those whose names begin with "measured"."""
    layout, wish = outcome.layout, outcome.wish
    return {
        "model": outcome.model,
        "context": wish.tokens,
        "fits": not layout.reasons,
        "reasons": list(layout.reasons),
        "remedies": list(outcome.remedies),
        "notes": list(outcome.notes),
        "limits": {"device": wish.device_memory, "ram": wish.ram, "disk": wish.disk},
        "predicted_bytes": tiers(layout),
        "predicted_total": {"device": layout.device, "ram": layout.ram, "disk": layout.held.pages_on_disk},
        "plain_cache": {"predicted_device": layout.plain, "fits": layout.plain <= wish.device_memory},
        "knobs": knobs(layout),
        "command": command(outcome) if outcome.asks else None,
        "times": [
            {
                "card": one.name,
                "card_memory": one.memory,
                "predicted_prefill_s": one.prefill_s,
                "predicted_decode_s": None if one.step is None else asdict(one.step),
                "predicted_plain_decode_s": None if one.plain is None else asdict(one.plain),
                "predicted_chunk_s": one.chunk_s,
                "measured_decode_s": one.measured_step_s,
                "measured_chunk_s": one.measured_chunk_s,
                "measured_plain_decode_s": one.measured_plain_s,
                "measured_by": one.told or None,
            }
            for one in outcome.times
        ],
    }
