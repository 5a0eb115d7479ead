"""Captures: what a model's global layers hold and ask after one document, a file each in the user's cache folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path
from safetensors import safe_open
from safetensors.torch import save_file

from .documents import LongDocument

TEXT_TOKENS = 64
"""All queries of the last this many positions are kept too."""


@dataclass(frozen=True)
class Fact:
    """A question that was asked after the document.

    Attributes
    ----------
    task, answer : str
    right : bool
        Whether the model answered it, attending as the capture's prefill did.
    place : (int, int)
        First token of the passage that answers it, and the one after its last.
    """

    task: str
    answer: str
    right: bool
    place: tuple[int, int]


@dataclass(frozen=True)
class Layer:
    """One global layer, all bfloat16.

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
    """A capture's file; layers are read from it when asked for.

    Attributes
    ----------
    path : Path
    tokens, width : int
        T and D.
    scale : float
        Factor on query · key.
    layers : tuple of int
        The global layers, by index in the model.
    facts : tuple of Fact
    positions : int64 [S]
        Where queries were sampled.
    """

    path: Path
    tokens: int
    width: int
    scale: float
    layers: tuple[int, ...]
    facts: tuple[Fact, ...]
    positions: torch.Tensor

    def layer(self, index: int) -> Layer:
        """Read one of `layers`."""
        with safe_open(self.path, framework="pt") as file:
            return Layer(*(file.get_tensor(f"{name}.{index}") for name in ("key", "value", "sampled", "text", "asked")))


def write_capture(
    path: Path, layers: dict[int, Layer], positions: torch.Tensor, scale: float, facts: Sequence[Fact]
) -> None:
    """Write a capture, whole or not at all."""
    tensors = {f"{name}.{index}": tensor for index, layer in layers.items() for name, tensor in vars(layer).items()}
    about = {"scale": scale, "layers": list(layers), "facts": [vars(fact) for fact in facts]}
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".part")
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()} | {"positions": positions},
        scratch,
        metadata={"about": json.dumps(about)},
    )
    scratch.rename(path)


def read_capture(path: Path) -> Capture:
    """Open a capture."""
    with safe_open(path, framework="pt") as file:
        about: dict[str, Any] = json.loads(file.metadata()["about"])
        positions = file.get_tensor("positions")
        _, tokens, width = file.get_slice(f"key.{about['layers'][0]}").get_shape()
    facts = tuple(Fact(f["task"], f["answer"], f["right"], tuple(f["place"])) for f in about["facts"])
    return Capture(path, tokens, width, about["scale"], tuple(about["layers"]), facts, positions)


def capture_path(document: LongDocument) -> Path:
    """Where the capture of a document is, or will be."""
    return user_cache_path("kiv-benchmarks") / "long" / f"{document.name}.safetensors"


def load_capture(document: LongDocument) -> Capture:
    """Return the capture of a document; on first use the model reads it (minutes; the whole book an hour or two)."""
    path = capture_path(document)
    if not path.exists():
        from .recorder import record

        record(document, path)
    return read_capture(path)
