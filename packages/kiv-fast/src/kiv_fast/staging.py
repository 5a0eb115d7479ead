"""Host memory between a file and a tensor, and reads joined into as few system calls as possible."""

from __future__ import annotations

import torch
from kiv_reference.errors import KIVStorageError, refuse

from .host import reserve


class Staging:
    """Host memory that a file can be read into and a tensor made of."""

    def __init__(self, dtype: torch.dtype, width: int) -> None:
        self._dtype, self._width = dtype, width
        self._count = 0
        self.rows(1)

    def rows(self, count: int) -> tuple[torch.Tensor, memoryview]:
        """`count` rows ``[count, width]`` and their bytes."""
        if count > self._count:
            reserved = reserve(count * self._width, self._dtype)
            if reserved is None:
                need = f"{count * self._width * self._dtype.itemsize} bytes"
                rule = "the disk tier needs memory of its own to read into (SPEC 10.1)"
                raise refuse(KIVStorageError, rule, f"no mapping of {need}", "Raise the limit on address space.")
            self._flat, mapping = reserved
            self._bytes, self._count = memoryview(mapping), count
        size = count * self._width
        return self._flat[:size].view(count, self._width), self._bytes[: size * self._dtype.itemsize]


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
