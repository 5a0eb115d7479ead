"""Every system call of the disk tier, in one place, so that tests can make each of them fail."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..ops.library import load

READAHEAD_RANDOM = getattr(os, "POSIX_FADV_RANDOM", None)
READAHEAD_NEEDED = getattr(os, "POSIX_FADV_WILLNEED", None)

NO_UNNAMED = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)
"""What file systems and kernels without unnamed files answer."""


class FileIO:
    """Scratch files without a name, and positional reads and writes. Methods raise OSError, or return short counts."""

    def create(self, folder: str) -> int:
        """Make an empty file in `folder` that nobody else can open; returns its descriptor."""
        flags = os.O_RDWR | getattr(os, "O_CLOEXEC", 0)
        unnamed = getattr(os, "O_TMPFILE", 0)
        if unnamed:
            try:
                return os.open(folder, flags | unnamed, 0o600)
            except OSError as error:
                if error.errno not in NO_UNNAMED:
                    raise
        # No unnamed files here: one with a name, removed at once.
        handle, path = tempfile.mkstemp(prefix="kiv-", dir=folder)  # mode 0600
        try:
            os.unlink(path)
        except BaseException:
            os.close(handle)
            raise
        return handle

    def allocate(self, handle: int, offset: int, nbytes: int) -> None:
        """Reserve disk space, so that a full disk shows here and not in a later write."""
        os.posix_fallocate(handle, offset, nbytes)

    def truncate(self, handle: int, nbytes: int) -> None:
        """Let the file end after n bytes; the space behind them is free again."""
        os.truncate(handle, nbytes)

    def write(self, handle: int, buffer: memoryview, offset: int) -> int:
        """Write at `offset`; returns how many bytes were written."""
        return os.pwrite(handle, buffer, offset)

    def read(self, handle: int, buffers: Sequence[memoryview], offset: int) -> int:
        """Read from `offset` into `buffers`; returns how many bytes were read."""
        return os.preadv(handle, buffers, offset)

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
        if READAHEAD_RANDOM is not None:
            os.posix_fadvise(handle, 0, 0, READAHEAD_RANDOM)

    def will_need(self, handle: int, offset: int, nbytes: int) -> None:
        """Tell the system to begin reading."""
        if READAHEAD_NEEDED is not None:
            os.posix_fadvise(handle, offset, nbytes, READAHEAD_NEEDED)

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
        count = io.read(handle, [buffer[done:]], offset + done)
        if count <= 0:
            raise OSError(errno.EIO, f"read {done} of {len(buffer)} bytes")
        done += count
