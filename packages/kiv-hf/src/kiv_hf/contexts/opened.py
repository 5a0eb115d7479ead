"""A context that is open: its manifest, and its segments' files, which stay what they are whatever is written since."""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from typing import TYPE_CHECKING

from kiv_fast.tiers.file_io import read_all
from kiv_reference.errors import KIVUsageError, refuse

from .faults import corrupt, system_calls, well_formed
from .folder import check_file, close_quietly
from .manifest import LARGEST
from .manifest_reader import manifest_from
from .segment_file import SegmentFile
from .segments import ALIGNED

if TYPE_CHECKING:
    from .folder import Folder

ATTEMPTS = 100
"""How often a manifest is read whose segments are gone, because another one is in its place."""


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
