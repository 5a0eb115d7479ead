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
import warnings
from bisect import bisect_right, insort

from kiv_reference.errors import KIVBudgetError, KIVError, KIVStorageError, KIVUsageError, refuse

from ..shape import Shape
from .file_io import read_all, write_all
from .resources import Resources
from .segment import ALIGN, Segment, first_place, header

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
READING = "read a page"


class Segments:
    """The pages of one arena on disk, each at a place: a number that writing it gives.

    Methods raise `KIVBudgetError` where there is no room, `KIVStorageError` where the disk fails.
    """

    def __init__(self, shape: Shape, resources: Resources) -> None:
        self._shape, self._page_tokens, self._folder = shape, resources.config.page_tokens, resources.folder
        self._io, self._account, self._counters = resources.io, resources.account, resources.counters
        self._tuning = resources.tuning
        token = shape.heads * self._page_tokens * shape.dtype.itemsize
        self._key_bytes, self._value_bytes = token * shape.key_width, token * shape.value_width
        self._segments: list[Segment] = []  # in the order of their places

    @property
    def free(self) -> int:
        """Pages that fit without another file."""
        return sum(segment.free for segment in self._segments if segment.mine)

    def ensure(self, pages: int) -> None:
        """Have room for n pages more."""
        while (missing := pages - self.free) > 0:
            self._add(missing)

    def _add(self, missing: int) -> None:
        page = self._key_bytes + self._value_bytes
        held = sum(segment.nbytes for segment in self._segments)
        first, most = self._tuning.first_segment_bytes, self._tuning.most_segment_bytes
        wanted = max(missing, min(max(held, first), most) // page)
        wanted = max(min(wanted, most // page), 1)
        room = self._account.room(2)
        if room is not None:
            wanted = max(min(wanted, (room - 2 * ALIGN) // page), min(missing, wanted))
        head = header(self._shape, self._page_tokens, wanted)
        nbytes = len(head) + wanted * page
        self._account.take(disk=nbytes)
        segment = Segment(self._unused(wanted), wanted, len(head), nbytes)
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

    def _unused(self, pages: int) -> int:
        """Find n places in a row that no file has; the first of them."""
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
        (number,) = segment.numbers.take(1)
        for part, offset in zip((key, value), self._offsets(segment, number), strict=True):
            try:
                write_all(self._io, segment.handle, part, offset)
            except OSError as error:
                segment.numbers.drop([number])
                raise self._failed(error, "write a page", offset, len(part)) from error
        self._counters.disk_bytes_written += len(key) + len(value)
        return segment.first + number

    def _offsets(self, segment: Segment, number: int) -> tuple[int, int]:
        return (
            segment.start + number * self._key_bytes,
            segment.start + segment.pages * self._key_bytes + number * self._value_bytes,
        )

    def _found(self, place: int) -> tuple[Segment, int]:
        """Find the file that has a place, and the page's number in it."""
        segment = self._segments[bisect_right(self._segments, place, key=first_place) - 1]
        return segment, place - segment.first

    def where(self, place: int, value: bool) -> tuple[int, int]:
        """Find the file and the offset of the keys or values of the page at a place."""
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
        segment.numbers.drop([number])

    def trim(self, keep: int) -> None:
        """Close the segments that hold nothing, as long as there is room for `keep` pages without them."""
        for segment in [s for s in self._segments if not s.numbers.used]:
            if segment.mine and self.free - segment.pages < keep:
                continue
            self._give_back(segment)

    def _give_back(self, segment: Segment) -> None:
        self._close(segment)
        self._segments.remove(segment)
        self._account.give(disk=segment.nbytes)

    def _close(self, segment: Segment) -> None:
        """Close a file that nobody needs: the system takes it back, whatever it says about it."""
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
