"""A few bytes of a tensor, from all over it, that stand for all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

PIECES = 16
PIECE_BYTES = 256
"""A tensor of up to so many such pieces is read whole; of a larger one the first, the last, and evenly between."""

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of an element -> integers of that width, which every device can move whatever it computes."""


def samples(tensor: torch.Tensor) -> bytes:
    """Return the bytes of the sampled elements of a tensor, in order of position, wherever and however it lies.

    Parameters
    ----------
    tensor : any shape, dtype and device but "meta"
    """
    tensor = tensor.detach()
    if tensor.element_size() in _INTEGERS:
        tensor = tensor.view(_INTEGERS[tensor.element_size()])
    total, piece = tensor.numel(), max(1, PIECE_BYTES // tensor.element_size())
    if total <= PIECES * piece:
        chosen = tensor.reshape(-1)
    else:
        stride = (total - piece) // (PIECES - 1)
        if tensor.is_contiguous():
            flat = tensor.view(-1)
            all_but_last = flat.as_strided((PIECES - 1, piece), (stride, 1), flat.storage_offset())
            chosen = torch.cat([all_but_last.reshape(-1), flat[-piece:]])
        else:  # to make it contiguous would copy all of it
            starts = torch.arange(PIECES, device="cpu") * stride
            starts[-1] = total - piece
            positions = (starts[:, None] + torch.arange(piece, device="cpu")).reshape(-1).to(tensor.device)
            chosen = tensor[torch.unravel_index(positions, tensor.shape)]
    return chosen.contiguous().view(torch.uint8).cpu().numpy().tobytes()


def plain(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the plain tensors that a tensor consists of: itself, unless its class packs several into one."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield name, tensor
        return
    inner, _ = cast("Any", tensor).__tensor_flatten__()
    for attribute in inner:
        yield from plain(f"{name}.{attribute}", getattr(tensor, attribute))
