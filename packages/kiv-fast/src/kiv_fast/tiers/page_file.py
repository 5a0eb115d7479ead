"""Cold pages on disk, in a scratch file without a name: each its key, then its value.

The file grows by what its pages need, allocated before they are written, and is cut where its last pages go. A page has
a place in it once it was written whole, and not before.

A file belongs to the process that made it. After `os.fork` parent and child hold the same file, and either might give
a place to another page without the other's knowledge: a child makes a file of its own, and uses no page of the other.
"""

from __future__ import annotations

import errno
import os
import warnings

import numpy as np
from kiv_reference.errors import KIVBudgetError, KIVError, KIVStorageError, KIVUsageError, refuse
from numpy.typing import NDArray

from ..pages.block_table import IdPool
from ..shape import Shape
from .file_io import write_all
from .resources import Resources

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
READING = "read a page"


class PageFile:
    """The pages of one arena on disk, each at a place: a number that writing it gives.

    Methods raise `KIVBudgetError` where there is no room, `KIVStorageError` where the disk fails, and `KIVUsageError`
    in a process that was forked from the one that wrote the pages.
    """

    def __init__(self, shape: Shape, resources: Resources) -> None:
        self._folder, self._io = resources.folder, resources.io
        self._account, self._counters = resources.account, resources.counters
        token = shape.heads * resources.config.page_tokens * shape.dtype.itemsize
        self._key_bytes, self._page_bytes = token * shape.key_width, token * (shape.key_width + shape.value_width)
        self._numbers, self._room = IdPool(), 0  # pages that are in the file, and that it has room for
        self._file: list[int] = []  # its handle, as long as it is open
        self._process = 0  # that made it

    def ensure(self, pages: int) -> None:
        """Have room for n pages more.

        Raises
        ------
        KIVBudgetError, KIVStorageError
            There is no room on the disk or within `disk_bytes`, or the system refuses.
        KIVUsageError
            Another process wrote the pages that are there.
        """
        self._check_process()
        more = pages - (self._room - self._numbers.used)
        if more <= 0:
            return
        start, nbytes = self._room * self._page_bytes, more * self._page_bytes
        self._account.take(disk=nbytes)
        try:
            if not self._file:
                self._process = os.getpid()
                self._file.append(self._io.create(self._folder))
                self._io.expect_random(self._file[0])
            self._io.allocate(self._file[0], start, nbytes)
        except OSError as error:
            self._room += more
            self._cut(self._room - more)
            raise self._failed(error, "grow", start, nbytes) from error
        self._room += more

    @property
    def pages(self) -> int:
        """Pages in the file."""
        return self._numbers.used

    def _check_process(self) -> None:
        """Let go of another process's file if nothing in it is held, and refuse to use it if something is."""
        if not self._file or self._process == os.getpid():
            return
        if self._numbers.used:
            rule = "pages on disk can be used by the process that wrote them only"
            got = f"process {os.getpid()}, forked from {self._process}"
            raise refuse(KIVUsageError, rule, got, "Reset the store, or fill a cache in each process.")
        self._cut(0)

    def _failed(self, error: OSError, what: str, offset: int, nbytes: int) -> KIVError:
        if error.errno is None:  # not the system's, but what a signal's handler raised: `TimeoutError()`
            try:
                raise error
            finally:
                del error  # or this frame and the error would keep each other, and the file
        where = f"{error.strerror or error} on bytes {offset} to {offset + nbytes} of a scratch file in {self._folder}"
        if error.errno in FULL and what != READING:
            rule = f"the disk tier must have room to {what} (SPEC 10.2)"
            return refuse(KIVBudgetError, rule, where, "Free disk space, or set spill_dir to a larger disk.")
        rule = f"the disk tier must be able to {what} (SPEC 10.1)"
        return refuse(KIVStorageError, rule, where, "Check the disk, or set spill_dir to another one.")

    def write(self, key: memoryview, value: memoryview) -> int:
        """Write one page; it has a place, which is returned, only once both parts are written whole.

        Raises
        ------
        KIVBudgetError, KIVStorageError, KIVUsageError
            As for `ensure`. Nothing is written then.
        """
        self.ensure(1)  # a child does not have the room that its parent had made
        (number,) = self._numbers.take(1)
        offset = number * self._page_bytes
        try:
            write_all(self._io, self._file[0], key, offset)
            write_all(self._io, self._file[0], value, offset + self._key_bytes)
        except OSError as error:
            self._numbers.drop([number])
            raise self._failed(error, "write a page", offset, self._page_bytes) from error
        return number

    def offsets(self, places: NDArray[np.int64], value: bool) -> NDArray[np.int64]:
        """Find the keys or values of pages, in bytes from the beginning of the file."""
        return places * self._page_bytes + (self._key_bytes if value else 0)

    def read(self, offsets: NDArray[np.int64], at: NDArray[np.int64], size: int, buffer: memoryview) -> None:
        """Fill parts of `size` bytes, which begin `at` bytes of a buffer, in as few system calls as possible.

        Raises
        ------
        KIVStorageError
            The system refuses.
        KIVUsageError
            Another process wrote the pages.
        """
        self._check_process()
        if not len(offsets):
            return
        apart = (np.diff(offsets) != size) | (np.diff(at) != size)
        last = np.flatnonzero(np.append(apart, True))
        first = np.append(0, last[:-1] + 1)
        offsets, sizes, at = offsets[first], at[last] - at[first] + size, at[first]
        try:
            self._io.read_many(self._file[0], offsets, at, sizes, buffer)
        except OSError as error:
            start = offsets.min().item()
            raise self._failed(error, READING, start, (offsets + sizes).max().item() - start) from error
        self._counters.disk_bytes_read += int(sizes.sum())

    def drop(self, place: int) -> None:
        """Forget the page at a place."""
        self._numbers.drop([place])

    def trim(self, keep: int) -> None:
        """Give back what is behind the last page, as long as there is room for `keep` pages without it."""
        room = max(len(self._numbers), self._numbers.used + keep)
        if self._file and self._process != os.getpid():  # its maker goes on to use it
            room = self._room if self._numbers.used else 0
        if room < self._room:
            self._cut(room)

    def _cut(self, room: int) -> None:
        """Let the file end after `room` pages; without any it is closed."""
        if not room:
            self._close()
        else:
            try:
                self._io.truncate(self._file[0], room * self._page_bytes)
            except OSError as error:
                if error.errno is None:
                    raise
                self._warn(f"cut: {error}")
                return  # it is as long as it was
        self._account.give(disk=(self._room - room) * self._page_bytes)
        self._room = room

    def _close(self) -> None:
        """Close a file that nobody needs: the system takes it back, whatever it says about it."""
        try:
            if self._file:
                self._io.close(self._file.pop())
        except OSError as error:
            if error.errno is None:
                raise
            self._warn(f"closed well: {error}")

    def _warn(self, what: str) -> None:
        warnings.warn(f"a scratch file in {self._folder} was not {what}", RuntimeWarning, stacklevel=3)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._close()
