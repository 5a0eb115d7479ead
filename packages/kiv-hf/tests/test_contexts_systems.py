"""Systems that lack what Linux has: flags of files, calls, locks."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import pytest
from contexts_helpers import cache_of, filled, of_cache, read_all
from kiv_hf.contexts.write import write
from kiv_reference.errors import KIVStorageError, KIVUsageError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "x", cache_of(filled()))
    return tmp_path / "x"


@pytest.mark.parametrize("lacks", [("O_NOFOLLOW", "O_NONBLOCK", "O_DIRECTORY", "geteuid"), ("preadv", "pwrite")])
def test_systems_that_lack_calls(lacks: tuple[str, ...], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in lacks:
        monkeypatch.delattr(os, name)
    write(folder, cache_of(filled(60)))
    write(folder, cache_of(filled(60)), previous_pages=12)
    assert read_all(folder) == of_cache(cache_of(filled(60)))


class MSVCRT:
    """Windows' locks: each byte is locked once."""

    LK_NBLCK = 2
    held: set[tuple[int, int]]

    def __init__(self) -> None:
        self.held, self.handles = set(), []

    def locking(self, handle: int, mode: int, nbytes: int) -> None:
        status = os.fstat(handle)
        assert (mode, nbytes) == (self.LK_NBLCK, 1)
        if (status.st_dev, status.st_ino) in self.held:
            raise PermissionError(13, "Permission denied")
        self.held.add((status.st_dev, status.st_ino))


def test_locks_of_windows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locks = MSVCRT()
    modules: dict[str, Any] = sys.modules
    monkeypatch.setitem(modules, "fcntl", None)
    monkeypatch.setitem(modules, "msvcrt", locks)
    write(folder, cache_of(filled(60)))
    assert len(locks.held) == 1
    with pytest.raises(KIVUsageError, match="one at a time"):
        write(folder, cache_of(filled(60)))


def test_a_system_without_locks_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules: dict[str, Any] = sys.modules
    monkeypatch.setitem(modules, "fcntl", None)
    monkeypatch.setitem(modules, "msvcrt", None)
    with pytest.raises(KIVStorageError, match="no locks"):
        write(folder, cache_of(filled(60)))
    assert read_all(folder) == of_cache(cache_of(filled()))
