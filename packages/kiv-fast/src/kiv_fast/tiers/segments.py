"""Segments of cold pages on disk: scratch files in the safetensors format, without a name.

A segment is allocated whole before it is used. Its header is written first, padded so that the data begins at a page
of the file system; it is a valid safetensors file at any time. A page has a place in the segment once it was written
whole, and not before.

A file belongs to the process that made it. After `os.fork` parent and child hold the same file, and either might give
a place to another page without the other's knowledge: a child writes to files of its own and reads no other.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
import warnings
from bisect import bisect_right, insort

import platformdirs
from kiv_reference.errors import KIVBudgetError, KIVError, KIVStorageError, KIVUsageError, refuse

from ..memory.ledger import Account, Counters
from ..shape import Shape
from ..tuning import Tuning
from .file_io import FileIO, read_all, write_all
from .segment import ALIGN, Segment, first_place, header

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
READING = "read a page"


def folder_for(configured: str | os.PathLike[str] | None) -> str:
    """The folder for segments, absolute: the configured one, else one for temporary files that is not in memory."""
    if configured is not None:
        place = os.path.abspath(configured)
        if not os.path.isdir(place):
            raise refuse(KIVUsageError, "spill_dir must be an existing folder", repr(place), "Create it first.")
        if in_memory(place):
            rule = "spill_dir must be on a disk, not in memory"
            raise refuse(KIVUsageError, rule, repr(place), "Choose a folder on a disk.")
        return _writable(place)
    try:
        place = tempfile.gettempdir()
        if not in_memory(place):
            return _writable(place)
        cache = platformdirs.user_cache_path("kiv")
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        if error.errno is None:
            raise
        rule = "the disk tier needs a folder for its files"
        raise refuse(KIVUsageError, rule, str(error), "Set spill_dir to a folder on a disk.") from error
    warnings.warn(f"{place} is kept in memory; cold pages spill to {cache} instead.", RuntimeWarning, stacklevel=2)
    return _writable(os.fspath(cache))


def _writable(place: str) -> str:
    """The folder, in which a file can be made: a read-only one shows here and not at the first spill."""
    io = FileIO()
    try:
        io.close(io.create(place))
    except OSError as error:
        if error.errno is None:  # not the system's, but what a signal's handler raised
            raise
        rule = "spill_dir must be a folder in which files can be made"
        raise refuse(KIVUsageError, rule, f"{place!r} ({error})", "Set spill_dir to another one.") from error
    return place


def in_memory(place: str, mounts: str = "/proc/self/mountinfo") -> bool:
    """Whether a folder is on a file system that is kept in memory, or on an overlay that writes to one.

    A mount is known by its device, whatever its path looks like and whatever was mounted over it.
    """
    try:
        device = os.stat(place).st_dev
        with open(mounts, encoding="utf-8", errors="surrogateescape") as lines:
            fields = [line.split() for line in lines]
    except OSError as error:  # not Linux, or not a folder of this process: nothing is known, and nothing is refused
        if error.errno is None:
            raise
        return False
    for line in fields:
        if line[2] == f"{os.major(device)}:{os.minor(device)}":
            kind, _, options = line[line.index("-") + 1 :]
            upper = [option[len("upperdir=") :] for option in options.split(",") if option.startswith("upperdir=")]
            above = [re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), folder) for folder in upper]
            return kind in ("tmpfs", "ramfs", "devtmpfs") or any(in_memory(folder, mounts) for folder in above)
    return False


class Segments:
    """The pages of one arena on disk, each at a place: a number that writing it gives.

    Parameters
    ----------
    shape, page_tokens : of the pages
    folder : where the files go
    io : FileIO
    """

    def __init__(
        self,
        shape: Shape,
        page_tokens: int,
        folder: str,
        io: FileIO,
        ledger: Account,
        counters: Counters,
        tuning: Tuning,
    ) -> None:
        self._tuning = tuning
        self._shape, self._page_tokens, self._folder = shape, page_tokens, folder
        self._io, self._ledger, self._counters = io, ledger, counters
        self._key_bytes = shape.heads * page_tokens * shape.key_width * shape.dtype.itemsize
        self._value_bytes = shape.heads * page_tokens * shape.value_width * shape.dtype.itemsize
        self._segments: list[Segment] = []  # in the order of their places

    @property
    def free(self) -> int:
        """Pages that fit without another file."""
        return sum(segment.free for segment in self._segments if segment.mine)

    def ensure(self, pages: int) -> None:
        """Have room for so many more pages, or refuse (SPEC 10.2)."""
        while (missing := pages - self.free) > 0:
            self._add(missing)

    def _add(self, missing: int) -> None:
        page = self._key_bytes + self._value_bytes
        held = sum(segment.nbytes for segment in self._segments)
        first, most = self._tuning.first_segment_bytes, self._tuning.most_segment_bytes
        wanted = max(missing, min(max(held, first), most) // page)
        wanted = max(min(wanted, most // page), 1)
        room = self._ledger.room(2)
        if room is not None:
            wanted = max(min(wanted, (room - 2 * ALIGN) // page), min(missing, wanted))
        head = header(self._shape, self._page_tokens, wanted)
        nbytes = len(head) + wanted * page
        self._ledger.take(disk=nbytes)
        segment = Segment(self._unused(wanted), wanted, len(head), nbytes, wanted)
        # Before it has a file, which would stay open if an interrupt came between.
        insort(self._segments, segment, key=first_place)
        try:
            segment.file.append(self._io.create(self._folder))
            self._io.allocate(segment.handle, nbytes)
            write_all(self._io, segment.handle, memoryview(head), 0)
            self._io.expect_random(segment.handle)
        except OSError as error:
            self._give_back(segment)
            raise self._failed(error, "make a segment", 0, nbytes) from error
        segment.fresh = 0

    def _unused(self, pages: int) -> int:
        """The first of so many places that no file has."""
        first = 0
        for segment in self._segments:
            if segment.first - first >= pages:
                break
            first = segment.first + segment.pages
        return first

    def _failed(self, error: OSError, what: str, offset: int, nbytes: int) -> KIVError:
        if error.errno is None:  # not the system's, but what a signal's handler raised: `TimeoutError()`
            try:
                raise error
            finally:
                del error  # or this frame and the error would keep each other, and the files
        where = f"{error.strerror or error} on bytes {offset} to {offset + nbytes} of a scratch file in {self._folder}"
        if error.errno in FULL and what != READING:
            rule = f"the disk tier must have room to {what} (SPEC 10.2)"
            return refuse(KIVBudgetError, rule, where, "Free disk space, or set spill_dir to a larger disk.")
        rule = f"the disk tier must be able to {what} (SPEC 10.1)"
        return refuse(KIVStorageError, rule, where, "Check the disk, or set spill_dir to another one.")

    def write(self, key: memoryview, value: memoryview) -> int:
        """Write one page; it has a place, which is returned, only once both parts are written whole."""
        self.ensure(1)  # a child does not have the room that its parent had made
        segment = next(segment for segment in self._segments if segment.free and segment.mine)
        number = segment.freed[-1] if segment.freed else segment.fresh
        offsets = self._offsets(segment, number)
        for part, offset in zip((key, value), offsets, strict=True):
            try:
                write_all(self._io, segment.handle, part, offset)
            except OSError as error:
                raise self._failed(error, "write a page", offset, len(part)) from error
        if segment.freed:
            segment.freed.pop()
        else:
            segment.fresh += 1
        self._counters.disk_bytes_written += len(key) + len(value)
        return segment.first + number

    def _offsets(self, segment: Segment, number: int) -> tuple[int, int]:
        return (
            segment.start + number * self._key_bytes,
            segment.start + segment.pages * self._key_bytes + number * self._value_bytes,
        )

    def _found(self, place: int) -> tuple[Segment, int]:
        """The file that has a place, and the page's number in it."""
        segment = self._segments[bisect_right(self._segments, place, key=first_place) - 1]
        return segment, place - segment.first

    def where(self, place: int, value: bool) -> tuple[int, int]:
        """File and offset of the keys or values of the page at a place."""
        segment, number = self._found(place)
        if not segment.mine:
            rule = "pages on disk can be read by the process that wrote them only"
            got = f"process {os.getpid()}, forked from {segment.process}"
            raise refuse(KIVUsageError, rule, got, "Reset the store, or fill a cache in each process.")
        return segment.handle, self._offsets(segment, number)[value]

    def read(self, runs: list[tuple[int, int, memoryview]]) -> None:
        """Fill buffers from (file, offset)."""
        offset, nbytes = 0, 0
        try:
            if len(runs) > 1:
                for handle, offset, buffer in runs:
                    nbytes = len(buffer)
                    self._io.will_need(handle, offset, nbytes)
            for handle, offset, buffer in runs:
                nbytes = len(buffer)
                read_all(self._io, handle, buffer, offset)
                self._counters.disk_bytes_read += nbytes
        except OSError as error:
            raise self._failed(error, READING, offset, nbytes) from error

    def drop(self, place: int) -> None:
        """Forget the page at a place."""
        segment, number = self._found(place)
        segment.freed.append(number)

    def trim(self, keep: int) -> None:
        """Close the segments that hold nothing, as long as there is room for `keep` pages without them."""
        for segment in [s for s in self._segments if s.free == s.pages]:
            if segment.mine and self.free - segment.pages < keep:
                continue
            self._give_back(segment)

    def _give_back(self, segment: Segment) -> None:
        self._close(segment)
        self._segments.remove(segment)
        self._ledger.give(disk=segment.nbytes)

    def _close(self, segment: Segment) -> None:
        """A file that nobody needs any more: the system takes it back, whatever it says about it."""
        if not segment.file:
            return
        try:
            self._io.close(segment.file.pop())
        except OSError as error:
            if error.errno is None:
                raise
            warnings.warn(
                f"a scratch file in {self._folder} was not closed well: {error}", RuntimeWarning, stacklevel=2
            )

    def __del__(self) -> None:
        for segment in getattr(self, "_segments", []):
            self._close(segment)
