"""Writes one segment: its header first, then tensors in any order, each from parts."""

from __future__ import annotations

import uuid
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
from kiv_fast.tiers.file_io import write_all

from .checksums import block_sums, checksum, seed_of
from .faults import system_calls
from .layout import SIDES
from .manifest import Segment
from .segments import end_of, header_of
from .tensors import bytes_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from kiv_reference.snapshot import Snapshot
    from numpy.typing import NDArray

    from .folder import Folder
    from .layout import Geometry, Tensors

BATCH_BYTES = 1 << 24
"""Of pages in memory at once, if they are not longer."""


class SegmentWriter:
    """A segment that is being written; used in a ``with``, after which its file is closed.

    Parameters
    ----------
    folder : of the context
    tensors : types and shapes of all that it will hold
    wrote : called with how many bytes of keys and values were written
    """

    def __init__(self, folder: Folder, tensors: Tensors, wrote: Callable[[int], None]) -> None:
        self.name = uuid.uuid4().hex
        self.path, self._io, self._wrote = folder.segment(self.name), folder.io, wrote
        self._header, self._parts = header_of(tensors)
        self.nbytes = end_of(len(self._header), self._parts.values())
        self._sums: dict[str, int] = {}
        self._left = self.nbytes
        self._handles: list[int] = []

    def __enter__(self) -> SegmentWriter:
        """Make the file."""
        with system_calls(self.path, "write", writing=True):
            self._handles.append(self._io.create_named(self.path))
        try:
            self._write(np.frombuffer(self._header, np.uint8), 0)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file of a segment that was given up."""
        if self._handles:
            with suppress(OSError):  # another error is on its way
                self._io.close(self._handles.pop())

    def _write(self, data: NDArray[np.uint8], at: int) -> None:
        with system_calls(self.path, "write", writing=True):
            write_all(self._io, self._handles[0], data.data, at)
        self._left -= len(data)

    def whole(self, name: str, tensor: torch.Tensor) -> None:
        """Write a tensor that has one checksum."""
        part = self._parts[name]
        data = bytes_of(tensor)
        assert (tensor.dtype, tuple(tensor.shape)) == (part.dtype, part.shape), "what the header says"
        self._sums[name] = checksum(data.data, seed_of(self.name, name))
        self._write(data, part.begin)

    def pages(self, layer: int, geometry: Geometry, snapshot: Snapshot, start: int, stop: int) -> None:
        """Write keys and values of pages of a layer, and their checksums."""
        of_page = geometry.heads * geometry.blocks
        for values in range(len(SIDES)):
            name = f"{layer}.{SIDES[values]}"
            part, seed = self._parts[name], seed_of(self.name, name)
            size = geometry.block_bytes(values)
            sums = np.empty((stop - start) * of_page, np.uint64)
            step = max(1, BATCH_BYTES // (of_page * size))
            for first in range(start, stop, step):
                last = min(first + step, stop)
                data = bytes_of(snapshot.read_pages(bool(values), first, last))
                blocks = np.arange((first - start) * of_page, (last - start) * of_page)
                sums[blocks] = block_sums(data, (blocks - blocks[0]) * size, size, seed, blocks)
                self._write(data, part.begin + int(blocks[0]) * size)
                self._wrote(len(data))
            self._whole_sums(f"{name}.sums", sums)

    def _whole_sums(self, name: str, sums: NDArray[np.uint64]) -> None:
        data = np.ascontiguousarray(sums.astype("<u8")).view(np.uint8)
        self._sums[name] = checksum(data.data, seed_of(self.name, name))
        self._write(data, self._parts[name].begin)

    def finish(self, pages: tuple[int, int] | None) -> Segment:
        """Have the file on the disk, and return what the manifest says of it."""
        assert not self._left, "every tensor was written"
        with system_calls(self.path, "write", writing=True):
            self._io.sync(self._handles[0])
            self._io.close(self._handles.pop())
        header = self._header
        return Segment(self.name, self.nbytes, len(header), checksum(header), pages, self._sums)
