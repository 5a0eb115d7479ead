"""Host memory between a file and a tensor, and reads joined into as few system calls as possible."""

from __future__ import annotations

import mmap

import torch
from kiv_reference.errors import KIVStorageError, refuse

from ..memory.growable_table import reserve


class Staging:
    """Host memory that files are read into and written from, by name, shared by all stores of a pool.

    What a name gave is overwritten by its next use. A step uses so much again, and `scratch.step_bytes` counts it.
    """

    def __init__(self) -> None:
        self._held: dict[str, tuple[torch.Tensor, mmap.mmap]] = {}

    def rows(self, name: str, count: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, memoryview]:
        """`count` rows ``[count, width]`` and their bytes."""
        nbytes = count * width * dtype.itemsize
        held = self._held.get(name)
        if held is None or held[0].numel() < nbytes:
            held = self._held[name] = _mapping(nbytes)
        return held[0][:nbytes].view(dtype).view(count, width), memoryview(held[1])[:nbytes]


def passing(count: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, memoryview]:
    """As `Staging.rows`, of memory that goes with the tensor: for what is much, and not read at every step."""
    flat, mapping = _mapping(count * width * dtype.itemsize, huge=True)
    return flat.view(dtype).view(count, width), memoryview(mapping)


def _mapping(nbytes: int, huge: bool = False) -> tuple[torch.Tensor, mmap.mmap]:
    reserved = reserve(max(1, nbytes), torch.uint8, huge)
    if reserved is None:
        rule = "the disk tier needs memory of its own to read into (SPEC 10.1)"
        raise refuse(KIVStorageError, rule, f"no mapping of {nbytes} bytes", "Raise the limit on address space.")
    return reserved


def joined(where: list[tuple[int, int, int]], size: int, buffer: memoryview) -> list[tuple[int, int, memoryview]]:
    """Reads of `size` bytes, (file, offset, place in `buffer`), joined where both sides go on."""
    runs: list[list[int]] = []
    for handle, offset, place in where:
        if runs:
            last = runs[-1]
            if last[0] == handle and last[1] + last[3] == offset and last[2] + last[3] == place:
                last[3] += size
                continue
        runs.append([handle, offset, place, size])
    return [(handle, offset, buffer[place : place + n]) for handle, offset, place, n in runs]
