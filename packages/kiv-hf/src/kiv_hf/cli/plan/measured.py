"""Figures that were measured on GPUs, to stand beside predictions: what ``python -m benchmarks.gpu`` wrote.

A run's ``gpu.json`` goes into the folder `FOLDER` as it is, under any name that ends in ``.json``; there is nothing
else to do. None is there yet. Runs with ``--quick``, which measure nothing, are refused, and so is any other file.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiv_reference.errors import KIVUsageError, refuse

if TYPE_CHECKING:
    from ..sizes.model import ModelSizes

FOLDER = Path(__file__).parent / "measured"

GEOMETRIES = {"smollm2": (30, 9, 3, 64, 1536), "wide": (3, 8, 1, 512, 4096), "llama": (32, 32, 8, 128, 14336)}
"""Layers, query heads, KV heads, width of a head and of the inner states of the models that the benchmark measures.

Their weights are random, in bfloat16, which changes no time but that of candidates: these hardly repeat.
"""

CHUNK_TOKENS = 1024
"""Of the chunk of a prompt that the benchmark measures, at the end of the context."""

OTHER_CACHES = ("original", "offloaded")
"""What the benchmark measures beside KIV and a plain cache; nothing is predicted of them."""


@dataclass(frozen=True)
class Measured:
    """One model, context and cache on one card.

    Attributes
    ----------
    card : str
        As CUDA names it, without the maker.
    geometry : tuple of int
        As in `GEOMETRIES`.
    tokens : int
    cache : "kiv" or "plain"
    step_s, chunk_s : float
        Seconds of a decode step, the median, and of a chunk of the prompt.
    told : str
        Commit, date and torch of the run.
    """

    card: str
    geometry: tuple[int, ...]
    tokens: int
    cache: str
    step_s: float
    chunk_s: float
    told: str


def load(folder: Path = FOLDER) -> list[Measured]:
    """Read every run in a folder; none if it is not there.

    Raises
    ------
    KIVUsageError
        A file is no run of the benchmark on a GPU.
    """
    return [one for path in sorted(folder.glob("*.json")) for one in _read(path)]


def _read(path: Path) -> list[Measured]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        run, stages = content["run"], content["stages"]
        if run["quick"]:
            raise ValueError("a quick run, which measures nothing")
        return [
            _measured(run, name, stage)
            for name, stage in stages.items()
            if "step_ms" in stage and not name.endswith(OTHER_CACHES)
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise refuse(
            KIVUsageError,
            "Measured figures must be what python -m benchmarks.gpu wrote on a GPU",
            f"{path.name}: {type(error).__name__}: {error}",
            "Take the file away, or put a whole gpu.json there.",
        ) from error


def _measured(run: dict[str, Any], name: str, stage: dict[str, Any]) -> Measured:
    match = re.fullmatch(r"(\w+) (\d+) (kiv|plain)", name)
    if match is None or match[1] not in GEOMETRIES:
        raise ValueError(f"an unknown stage {name!r}")
    step_s, chunk_s = stage["step_ms"] / 1e3, stage["prefill_chunk_ms"] / 1e3
    if not (step_s > 0 and chunk_s > 0):
        raise ValueError(f"{name!r} took {step_s} s and {chunk_s} s")
    card = re.sub(r"^NVIDIA ", "", run["card"])
    told = f"{stage['commit']}, {stage['at']}, torch {run['torch']}"
    return Measured(card, GEOMETRIES[match[1]], int(match[2]), match[3], step_s, chunk_s, told)


def geometry_of(sizes: ModelSizes) -> tuple[int, ...] | None:
    """Return what `GEOMETRIES` has of a model, None if its layers differ or keys and values do."""
    layers = set(sizes.layers)
    if len(layers) != 1 or not (layer := layers.pop()).kiv or layer.key_width != layer.value_width:
        return None
    return len(sizes.layers), layer.query_heads, layer.heads, layer.key_width, sizes.wide
