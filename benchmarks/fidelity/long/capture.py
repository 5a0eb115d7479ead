"""Captures: what a model's global layers hold and ask after one document, a file each in the user's cache folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from platformdirs import user_cache_path

if TYPE_CHECKING:
    from pathlib import Path

    from .documents import LongDocument

TEXT_TOKENS = 64
"""All queries of the last this many positions are kept too."""


@dataclass(frozen=True)
class Fact:
    """A question that was asked after the document.

    Attributes
    ----------
    task : str
    right : bool
        Whether the model answered it, attending as it read the document.
    place : (int, int)
        First token of the passage that answers it, and the one after its last.
    """

    task: str
    right: bool
    place: tuple[int, int]


@dataclass(frozen=True)
class Layer:
    """One global layer, as the model computed it.

    Attributes
    ----------
    key, value : [H, T, D], [H, T, DV]
    sampled : [HQ, S, D]
        Queries at `Capture.positions`.
    text : [HQ, TEXT_TOKENS, D]
        Queries of the last positions.
    asked : [HQ, F, D]
        The query of the last token of each fact's question.
    """

    key: torch.Tensor
    value: torch.Tensor
    sampled: torch.Tensor
    text: torch.Tensor
    asked: torch.Tensor


@dataclass(frozen=True)
class Capture:
    """All that is kept of a document.

    Attributes
    ----------
    name : str
        Of the document.
    tokens : int
        T.
    scale : float
        Factor on query · key.
    layers : dict of Layer
        The global layers, by index in the model.
    facts : tuple of Fact
    positions : int64 [S]
        Where queries were sampled.
    """

    name: str
    tokens: int
    scale: float
    layers: dict[int, Layer]
    facts: tuple[Fact, ...]
    positions: torch.Tensor


def write_capture(path: Path, capture: Capture) -> None:
    """Write a capture, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".part")
    torch.save(capture, scratch)
    scratch.rename(path)


def read_capture(path: Path) -> Capture:
    """Open a capture of one's own; its layers are read when they are looked at."""
    return torch.load(path, mmap=True, weights_only=False)


def capture_path(document: LongDocument) -> Path:
    """Return where the capture of a document is, or will be."""
    return user_cache_path("kiv-benchmarks") / "captures" / f"{document.name}.pt"


def load_capture(document: LongDocument) -> Capture:
    """Return the capture of a document; on first use the model reads it (minutes; the whole book an hour or two)."""
    path = capture_path(document)
    if not path.exists():
        from .recorder import record

        write_capture(path, record(document))
    return read_capture(path)
