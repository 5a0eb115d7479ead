"""A segment that is open: its header was compared with the manifest, tensors are when they are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from kiv_fast.tiers.file_io import read_all

from .checksums import checksum, seed_of
from .faults import Malformed, corrupt, system_calls, well_formed
from .folder import check_file
from .layout import SIDES, check_page_segment
from .segments import parts_of
from .tensors import room_for

if TYPE_CHECKING:
    from kiv_fast.tiers.durable_io import DurableIO
    from numpy.typing import NDArray

    from .manifest import Manifest, Segment


class SegmentFile:
    """A segment that is open; its header is what the manifest says.

    Attributes
    ----------
    path : str
    entry : Segment
        What the manifest says of it.
    handle : int
        Descriptor of the file.
    parts : dict
        Where each tensor is.
    held : dict
        How many pages it has of each layer, where it has pages.
    """

    def __init__(self, path: str, io: DurableIO, entry: Segment, handle: int, manifest: Manifest) -> None:
        self.path, self.entry, self.handle, self._io = path, entry, handle, io
        with system_calls(path, "read"):
            status = io.status(handle)
        check_file(path, status)
        if status.st_size != entry.nbytes:
            raise corrupt(path, f"have {entry.nbytes} bytes", status.st_size)
        header = self.read(0, min(entry.header_bytes, entry.nbytes)).tobytes()
        if checksum(header) != entry.header:
            raise corrupt(path, "have the header that was written", "another one")
        with well_formed(path):
            self.parts = parts_of(header, entry.nbytes)
            self.held = self._checked(manifest)

    def _checked(self, manifest: Manifest) -> dict[int, int]:
        paged: set[str] = set()
        if self.entry.pages is not None:
            paged = {f"{layer}.{side}" for layer in manifest.geometries for side in SIDES}
        if self.parts.keys() - paged != self.entry.sums.keys():
            raise Malformed("have checksums of all tensors but pages", sorted(self.entry.sums)[:8])
        if self.entry.pages is None:
            return {}
        found = {name: (part.dtype, part.shape) for name, part in self.parts.items()}
        return check_page_segment(found, manifest.geometries, self.entry.pages)

    def read(self, begin: int, nbytes: int) -> NDArray[np.uint8]:
        """Return bytes of the file."""
        data = room_for(torch.uint8, [nbytes]).numpy()
        self.read_into(data, begin)
        return data

    def read_into(self, data: NDArray[np.uint8], begin: int) -> None:
        """Fill `data` from a byte of the file on."""
        self.read_many(np.array([begin]), np.array([0]), np.array([len(data)]), data)

    def read_many(
        self, offsets: NDArray[np.int64], at: NDArray[np.int64], sizes: NDArray[np.int64], data: NDArray[np.uint8]
    ) -> None:
        """Read `sizes[i]` bytes from `offsets[i]` of the file to `at[i]` of `data`, each.

        Raises
        ------
        KIVCorruptError
            The file is shorter than it was.
        KIVStorageError
            The system refuses.
        """
        with system_calls(self.path, "read"):
            try:
                if len(sizes) == 1:
                    first, size = int(at[0]), int(sizes[0])
                    read_all(self._io, self.handle, data.data[first : first + size], int(offsets[0]))
                else:
                    self._io.read_many(self.handle, offsets, at, sizes, data.data)
            except OSError as error:
                if error.errno is not None and (size := self._io.status(self.handle).st_size) < self.entry.nbytes:
                    raise corrupt(self.path, f"have {self.entry.nbytes} bytes", size) from error
                raise

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor that has one checksum, in RAM.

        Raises
        ------
        KIVCorruptError
            It is not what was written.
        KIVStorageError, KIVBudgetError
        """
        part = self.parts[name]
        tensor = room_for(part.dtype, part.shape)
        data = tensor.reshape(-1).view(torch.uint8).numpy()
        self.read_into(data, part.begin)
        if checksum(data.data, seed_of(self.entry.name, name)) != self.entry.sums[name]:
            raise corrupt(self.path, f"hold {name} as it was written", "other bytes")
        if part.dtype == torch.bool and data.size and data.max() > 1:
            raise corrupt(self.path, f"have 0 and 1 in {name}", data.max())
        return tensor
