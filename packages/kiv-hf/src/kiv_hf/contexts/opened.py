"""A context that is open: its manifest, and its segments' files, which stay what they are whatever is written since."""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
import torch
from kiv_fast.tiers.file_io import read_all
from kiv_reference.errors import KIVUsageError, refuse

from .checksums import checksum, seed_of
from .faults import Malformed, corrupt, system_calls, well_formed
from .folder import check_file, close_quietly
from .layout import SIDES, check_page_segment
from .manifest import LARGEST
from .manifest_reader import manifest_from
from .segments import ALIGNED, parts_of
from .tensors import room_for

if TYPE_CHECKING:
    from kiv_fast.tiers.durable_io import DurableIO
    from numpy.typing import NDArray

    from .folder import Folder
    from .manifest import Manifest, Segment

ATTEMPTS = 100
"""How often a manifest is read whose segments are gone, because another one is in its place."""


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


class Opened:
    """The newest state of a context, whose files are closed with it or with the last who reads pages by it.

    Raises
    ------
    KIVUsageError
        There is none.
    KIVCorruptError, KIVStorageError, KIVMismatchError
    """

    def __init__(self, folder: Folder) -> None:
        self._io = folder.io
        seen = None
        for _ in range(ATTEMPTS):
            data = _manifest_bytes(folder)
            with well_formed(folder.manifest):
                self.manifest = manifest_from(data, folder.manifest)
            with ExitStack() as stack:
                gone = self._open(folder, stack)
                if gone is None:
                    self.close = weakref.finalize(self, stack.pop_all().close)
                    return
            if data == seen:
                raise corrupt(gone, "be there", "no such file")
            seen = data
        raise corrupt(folder.manifest, "name segments that are there", f"another one at each of {ATTEMPTS} attempts")

    def _open(self, folder: Folder, stack: ExitStack) -> str | None:
        """Open all segments; returns the path of one that is not there."""
        with system_calls(folder.segments, "read"):
            try:
                folder.check(folder.segments)
            except FileNotFoundError:
                return folder.segments
        self.files: list[SegmentFile] = []
        for entry in self.manifest.segments:
            path = folder.segment(entry.name)
            with system_calls(path, "open"):
                try:
                    handle = self._io.open_named(path)
                except FileNotFoundError:
                    return path
            stack.callback(close_quietly, self._io, handle)
            self.files.append(SegmentFile(path, self._io, entry, handle, self.manifest))
        return None

    def expect_random(self) -> None:
        """Tell the system that pages will be read here and there. Raises OSError."""
        for file in self.files[:-1]:
            self._io.expect_random(file.handle)

    @property
    def rest(self) -> SegmentFile:
        """The segment that holds everything but pages."""
        return self.files[-1]


def _manifest_bytes(folder: Folder) -> bytes:
    """Return the bytes of the manifest that is in place now."""
    with system_calls(folder.manifest, "read"), ExitStack() as stack:
        try:
            handle = folder.io.open_named(folder.manifest)
        except (FileNotFoundError, NotADirectoryError) as error:
            rule, remedy = "there must be a saved context", "Save one there first, or look for it elsewhere."
            raise refuse(KIVUsageError, rule, f"none in {folder.path}", remedy) from error
        stack.callback(close_quietly, folder.io, handle)
        status = folder.io.status(handle)
        check_file(folder.manifest, status)
        if not ALIGNED // 64 <= status.st_size <= LARGEST:
            raise corrupt(folder.manifest, f"have at most {LARGEST} bytes, and some", status.st_size)
        data = bytearray(status.st_size)
        try:
            read_all(folder.io, handle, memoryview(data), 0)
        except OSError as error:
            if error.errno is not None and folder.io.status(handle).st_size < status.st_size:
                raise corrupt(folder.manifest, "be as long as it was", "a shorter one") from error
            raise
        return bytes(data)
