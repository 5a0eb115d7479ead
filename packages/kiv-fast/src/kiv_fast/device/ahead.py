"""Tiles of cold pages on their way to a device: the next one is copied while the last one is attended.

There are two buffers on the device, which take turns. Copies run on a second stream. Events order the two streams both
ways: a buffer is filled once what reads its last tile is over, and a tile is read once its copy is. The host waits for
neither. It does wait, before it gathers into pinned memory that it used before, for the copy out of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from ..memory.scratch import Scratch
from .transfer import Beside, CudaStreams, Slots

PINNED_PARTS = 4
"""Keys and values of two tiles that the host gathers."""


class HostTile(NamedTuple):
    """Keys, or values, of a tile in RAM."""

    pieces: list[torch.Tensor]  # in order; flat if `paged`
    shape: tuple[int, ...]  # [n, heads, P, width] if `paged`, else [heads, n * P, width]
    paged: bool  # whether the device copies them from where they lie


class Ahead:
    """Sends tiles to a device, for all stores of a pool, whose buffers it uses (`Scratch`)."""

    def __init__(self, streams: CudaStreams, scratch: Scratch, device: torch.device) -> None:
        self._streams, self._scratch, self._device = streams, scratch, device
        self._slots = Slots(streams, PINNED_PARTS)

    def tiles(
        self, reads: Sequence[Callable[[], tuple[HostTile, HostTile]]]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield keys and values ``[heads, n * P, width]`` of each tile, overwritten once the next one is asked for.

        Parameters
        ----------
        reads : what reads each tile in RAM, keys and values
        """
        free = [self._streams.mark()] * 2
        try:
            flying = [self._send(turn, read(), free[turn]) for turn, read in enumerate(reads[:2])]
            for number in range(len(reads)):
                turn = number % 2
                copies, (key, value) = flying[turn]
                copies.join()
                yield self._in_order("keys", *key), self._in_order("values", *value)
                free[turn] = self._streams.mark()
                if number + 2 < len(reads):
                    flying[turn] = self._send(turn, reads[number + 2](), free[turn])
        finally:
            self._streams.rejoin()  # whoever uses the buffers next comes after all copies, of a call cut off too

    def _send(
        self, turn: int, tile: tuple[HostTile, HostTile], after: object
    ) -> tuple[Beside, list[tuple[torch.Tensor, HostTile]]]:
        """Begin to copy keys and values into the buffers whose turn it is."""
        parts: list[tuple[torch.Tensor, torch.Tensor]] = []
        sent: list[Callable[[Callable[[], None]], None]] = []
        targets: list[tuple[torch.Tensor, HostTile]] = []
        for name, part in zip(("keys", "values"), tile, strict=True):
            dtype = part.pieces[0].dtype
            target = self._scratch.take(f"{name} of tile {turn}", part.shape, dtype, self._device)
            targets.append((target, part))
            if part.paged:
                sizes = [piece.numel() for piece in part.pieces]
                parts += zip(part.pieces, torch.split(target.view(-1), sizes), strict=True)
                continue
            slot, tell = self._slots.fill(part.pieces[0])
            parts.append((slot, target))
            sent.append(tell)
        copies = self._streams.copy_beside(parts, after)
        for tell in sent:
            tell(copies.wait)
        return copies, targets

    def _in_order(self, name: str, target: torch.Tensor, part: HostTile) -> torch.Tensor:
        """Bring what came page by page into the order of tokens: ``[heads, n * P, width]``."""
        if not part.paged:
            return target
        pages, heads, size, width = part.shape
        if heads == 1:
            return target.view(1, pages * size, width)
        ordered = self._scratch.take(f"{name} in order", (heads, pages, size, width), target.dtype, self._device)
        ordered.copy_(target.transpose(0, 1))
        return ordered.view(heads, pages * size, width)
