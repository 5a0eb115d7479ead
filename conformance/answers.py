"""Answers of a store, as they are compared with one another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch
    from kiv_reference import LayerStore


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Say whether two tensors are equal, NaN with NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


Picked = list[tuple[list[Any], list[Any]]]


def picked(store: LayerStore) -> Picked:
    """Return candidate and selected positions of each block of a store's last call."""
    return [(block.candidate_positions.tolist(), block.selected_positions.tolist()) for block in store.report.blocks]


class Attended(NamedTuple):
    """An attend and what came of it."""

    query: torch.Tensor
    arguments: dict[str, Any]
    output: torch.Tensor
    picked: Picked
