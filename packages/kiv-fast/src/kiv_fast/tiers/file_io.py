"""Every system call of the disk tier, in one place, so that tests can make each of them fail.

A call that not every system has is asked for by name, and there is a way without it.
"""

from __future__ import annotations

import errno
import io
import os
import tempfile
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..ops.library import load

NO_ROOM_AHEAD = (errno.EOPNOTSUPP, errno.EINVAL)
"""What file systems answer that cannot reserve space."""

ZEROS_BYTES = 1 << 20
"""Written at once where space is reserved by writing."""


def _call(name: str) -> Any:
    """Return a function of `os`, or None where the system lacks it."""
    return getattr(os, name, None)


class FileIO:
    """Scratch files without a name, and positional reads and writes. Methods raise OSError, or return short counts."""

    _moving = Lock()  # a file has one place at which it is read and written, unless each call says its own

    def create(self, folder: str) -> int:
        """Make an empty file in `folder` that nobody else can open; returns its descriptor, with which it goes."""
        # Without a name where there are such files, else removed at once, and on Windows when it is closed.
        with tempfile.TemporaryFile(prefix="kiv-", dir=folder, buffering=0) as file:
            return os.dup(file.fileno())

    def allocate(self, handle: int, offset: int, nbytes: int) -> None:
        """Reserve disk space, so that a full disk shows here and not in a later write."""
        if (posix_fallocate := _call("posix_fallocate")) is not None:
            try:
                return posix_fallocate(handle, offset, nbytes)
            except OSError as error:
                if error.errno not in NO_ROOM_AHEAD:
                    raise
        zeros = memoryview(bytes(min(nbytes, ZEROS_BYTES)))
        for done in range(0, nbytes, len(zeros)):
            write_all(self, handle, zeros[: nbytes - done], offset + done)
        return None

    def truncate(self, handle: int, nbytes: int) -> None:
        """Let the file end after n bytes; the space behind them is free again."""
        os.ftruncate(handle, nbytes)

    def write(self, handle: int, buffer: memoryview, offset: int) -> int:
        """Write at `offset`; returns how many bytes were written."""
        if (pwrite := _call("pwrite")) is not None:
            return pwrite(handle, buffer, offset)
        with self._moving:
            os.lseek(handle, offset, os.SEEK_SET)
            return os.write(handle, buffer)

    def read(self, handle: int, buffer: memoryview, offset: int) -> int:
        """Read from `offset` into `buffer`; returns how many bytes were read."""
        if (preadv := _call("preadv")) is not None:
            return preadv(handle, [buffer], offset)
        with self._moving:
            os.lseek(handle, offset, os.SEEK_SET)
            return io.FileIO(handle, closefd=False).readinto(buffer)

    def read_many(
        self,
        handle: int,
        offsets: NDArray[np.int64],
        at: NDArray[np.int64],
        sizes: NDArray[np.int64],
        buffer: memoryview,
    ) -> None:
        """Read `sizes[i]` bytes from `offsets[i]` to `at[i]` of a buffer, each; in C, where that was built.

        Raises
        ------
        OSError
            Not all of them could be read.
        """
        library = load()
        if library is None or library.read is None:
            self.read_each(handle, offsets, at, sizes, buffer)
            return
        places = (np.ascontiguousarray(part) for part in (offsets, at, sizes))
        whole = np.frombuffer(buffer, dtype=np.uint8)
        parts = [*places, whole]
        error = library.read(handle, len(offsets), *(part.ctypes.data for part in parts), torch.get_num_threads())
        if error:
            raise OSError(error, os.strerror(error))

    def read_each(
        self,
        handle: int,
        offsets: NDArray[np.int64],
        at: NDArray[np.int64],
        sizes: NDArray[np.int64],
        buffer: memoryview,
    ) -> None:
        """Read as `read_many` does, by one system call after another; what is to come is asked for first.

        Raises
        ------
        OSError
            As for `read_many`.
        """
        reads = list(zip(offsets.tolist(), at.tolist(), sizes.tolist(), strict=True))
        if len(reads) > 1:
            for offset, _, size in reads:
                self.will_need(handle, offset, size)
        for offset, start, size in reads:
            read_all(self, handle, buffer[start : start + size], offset)

    def expect_random(self, handle: int) -> None:
        """Tell the system not to read ahead."""
        self._advise(handle, 0, 0, "POSIX_FADV_RANDOM")

    def will_need(self, handle: int, offset: int, nbytes: int) -> None:
        """Tell the system to begin reading."""
        self._advise(handle, offset, nbytes, "POSIX_FADV_WILLNEED")

    def _advise(self, handle: int, offset: int, nbytes: int, advice: str) -> None:
        if (posix_fadvise := _call("posix_fadvise")) is not None:
            posix_fadvise(handle, offset, nbytes, getattr(os, advice))

    def close(self, handle: int) -> None:
        """Close the file; its space is free again."""
        os.close(handle)


def write_all(io: FileIO, handle: int, buffer: memoryview, offset: int) -> None:
    """Write all of `buffer`, however short the counts; a count of nothing is an error.

    Raises
    ------
    OSError
        Not all could be written.
    """
    done = 0
    while done < len(buffer):
        count = io.write(handle, buffer[done:], offset + done)
        if count <= 0:
            raise OSError(errno.EIO, f"wrote {done} of {len(buffer)} bytes")
        done += count


def read_all(io: FileIO, handle: int, buffer: memoryview, offset: int) -> None:
    """Fill `buffer`, however short the counts; the end of the file is an error.

    Raises
    ------
    OSError
        Not all could be read.
    """
    done = 0
    while done < len(buffer):
        count = io.read(handle, buffer[done:], offset + done)
        if count <= 0:
            raise OSError(errno.EIO, f"read {done} of {len(buffer)} bytes")
        done += count
