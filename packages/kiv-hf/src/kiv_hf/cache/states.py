"""New keys and values: what a layer accepts, and what it returns in place of those it keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kiv_reference.errors import KIVShapeError, KIVUnsupportedError, refuse

if TYPE_CHECKING:
    import torch


def placeholders(key: torch.Tensor, value: torch.Tensor, total: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return NaN in the shapes [B, H, total, D] and [B, H, total, DV], of one element of memory."""
    (batch, heads, _, width), value_width = key.shape, value.shape[3]
    nan = key.new_full((1, 1, 1, 1), float("nan"))
    return nan.expand(batch, heads, total, width), nan.expand(batch, heads, total, value_width)


def check_states(key: torch.Tensor, value: torch.Tensor) -> None:
    """Refuse new keys or values that no store can take, before anything has changed.

    Raises
    ------
    KIVShapeError
        Not floating point [B, H, n, D].
    KIVUnsupportedError
        On the meta device, or part of a graph of gradients.
    """
    for name, states in (("keys", key), ("values", value)):
        if states.ndim != 4 or not states.is_floating_point():
            shown = f"{tuple(states.shape)}, {states.dtype}"
            raise refuse(KIVShapeError, f"new {name} must be floating point [B, H, n, D]", shown, "Use DynamicCache.")
        if states.is_meta:
            raise refuse(
                KIVUnsupportedError, f"new {name} must hold data", "a meta tensor", "Load the model's weights."
            )
        if states.requires_grad:
            raise refuse(
                KIVUnsupportedError,
                "KIV computes no gradients",
                f"{name} that require them",
                "Call the model under torch.no_grad() or torch.inference_mode().",
            )
