"""Reads of many parts of a file at once, compiled and one after another (SPEC 10.1)."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
from kiv_fast.ops.library import load
from kiv_fast.tiers.file_io import FileIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BYTES = 1 << 20
LIBRARY = load()
READERS = [FileIO.read_many, FileIO.read_each]


@pytest.fixture
def file(tmp_path: Path) -> Iterator[tuple[int, bytes]]:
    """A file on disk, and what is in it."""
    content = np.random.default_rng(1).integers(0, 256, BYTES, dtype=np.uint8).tobytes()
    handle = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.write(handle, content)
    os.fsync(handle)
    yield handle, content
    os.close(handle)


@pytest.mark.skipif(LIBRARY is None or LIBRARY.read is None, reason="no compiled reads on this system")
def test_the_compiled_reads_are_used(file: tuple[int, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "preadv", None)
    part = bytearray(8)
    FileIO().read_many(file[0], np.array([5]), np.array([1]), np.array([7]), memoryview(part))
    assert part[1:] == file[1][5:12]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("cached", [True, False])
def test_parts_of_any_size(file: tuple[int, bytes], read: Callable[..., None], cached: bool) -> None:
    """Parts that are in memory, and parts that the disk has to give."""
    handle, content = file
    if not cached:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    generator = np.random.default_rng(2)
    sizes = generator.integers(1, 3000, 700)
    at, offsets = np.cumsum(sizes) - sizes, generator.integers(0, BYTES - 3000, 700)
    whole = bytearray(int(sizes.sum()))
    read(FileIO(), handle, offsets, at, sizes, memoryview(whole))
    parts = zip(at.tolist(), offsets.tolist(), sizes.tolist(), strict=True)
    wrong = [first for to, first, size in parts if bytes(whole[to : to + size]) != content[first : first + size]]
    assert not wrong, "parts that begin there"


@pytest.mark.parametrize("read", READERS)
def test_what_cannot_be_read_is_an_error(file: tuple[int, bytes], read: Callable[..., None]) -> None:
    """A file that ends too soon, and one that is not open."""
    buffer = memoryview(bytearray(64))
    at, sizes = np.array([0, 32]), np.array([32, 32])
    with pytest.raises(OSError, match=rf"Errno {errno.EIO}\b"):
        read(FileIO(), file[0], np.array([0, BYTES - 16]), at, sizes, buffer)
    closed = os.dup(file[0])
    os.close(closed)
    with pytest.raises(OSError, match=rf"Errno {errno.EBADF}\b"):
        read(FileIO(), closed, np.array([0, 32]), at, sizes, buffer)
