"""Files are read into tensors, and reads joined into as few system calls as possible."""

from __future__ import annotations

import torch


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """View the memory of a contiguous tensor in RAM."""
    return tensor.view(torch.uint8).view(-1).numpy().data


def joined(where: list[tuple[int, int, int]], size: int, buffer: memoryview) -> list[tuple[int, int, memoryview]]:
    """Join reads of `size` bytes, (file, offset, place in `buffer`), where both sides go on."""
    runs: list[list[int]] = []
    for handle, offset, place in where:
        if runs:
            last = runs[-1]
            if last[0] == handle and last[1] + last[3] == offset and last[2] + last[3] == place:
                last[3] += size
                continue
        runs.append([handle, offset, place, size])
    return [(handle, offset, buffer[place : place + n]) for handle, offset, place, n in runs]
