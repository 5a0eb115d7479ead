"""A store on disk where calls are missing, one by one and as Windows and macOS lack them: the same bits (SPEC 10.1)."""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from fast_helpers import draw, feed, index_bytes, state_of
from faulty_disk import Faulty
from kiv_fast import FastPool, Tuning
from kiv_fast.shape import Shape
from kiv_fast.tiers import file_io
from kiv_fast.tiers.file_io import FileIO, read_all, write_all
from kiv_fast.tiers.page_file import PageFile
from kiv_reference import KIVConfig
from kiv_reference.errors import KIVBudgetError
from other_systems import become, lacks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kiv_fast.ops import OpsName

if sys.platform != "linux":
    pytest.skip("takes away what Linux has", allow_module_level=True)

CALLS = {
    "files without a name": [(tempfile, "_O_TMPFILE_WORKS")],
    "room ahead": [(os, "posix_fallocate")],
    "advice on files": [(os, "posix_fadvise")],
    "positional reads": [(os, "preadv")],
    "positional writes": [(os, "pwrite")],
    "advice on memory": [(mmap, name) for name in ("MADV_HUGEPAGE", "MADV_NOHUGEPAGE", "MADV_DONTNEED")],
}
KEEPING = Tuning(row_steps=2, row_share=2)


def hide(what: str, patch: pytest.MonkeyPatch) -> None:
    if what not in CALLS:
        become(what, patch)
    for module, name in CALLS.get(what, ()):
        if module is tempfile:
            patch.setattr(module, name, False)
        else:
            patch.delattr(module, name)


def play(config: KIVConfig, ops: OpsName) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """Feed a store, crop it, feed others and go on in a fork; outputs, and tokens on disk and bytes of kept rows."""
    first, second = draw(5, 260), draw(6, 260)
    pool = FastPool(config, tuning=KEEPING, ops=ops)
    store = pool.layer_store()
    outputs, seen = [], []

    def step(it: Any, data: Any, start: int, chunks: list[int]) -> None:
        outputs.append(feed(it, [part[:, :, start : start + sum(chunks)] for part in data], chunks))
        seen.append((it.tokens().cold_disk, state_of(it).cold.account.rows))

    step(store, first, 0, [150, *[1] * 20])
    store.crop(90)
    step(store, second, 90, [80, *[1] * 10])
    fork = store.fork()
    step(store, second, 180, [1] * 20)
    step(fork, first, 180, [1] * 20)
    step(store, second, 200, [1] * 4)
    pool.close()
    assert pool.memory() == (0, 0, 0)
    return torch.cat(outputs, dim=2), seen


@pytest.mark.parametrize("hidden", [*CALLS, "macos", "windows"])
def test_the_same_bits_without(config: KIVConfig, hidden: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ops = "torch" if hidden == "windows" else "auto"
    sample = FastPool(config).layer_store()
    feed(sample, draw(5, 260), [260])
    config = replace(config, ram_bytes=index_bytes(sample) + 9_000, spill_dir=tmp_path)
    expected, where = play(config, ops)
    assert all(disk > 0 for disk, _ in where)
    assert any(rows > 0 for _, rows in where)
    hide(hidden, monkeypatch)
    output, seen = play(config, "auto")
    assert torch.equal(output, expected)
    assert seen == where
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[int]:
    handle = FileIO().create(str(tmp_path))
    yield handle
    FileIO().close(handle)


@pytest.mark.parametrize("system", ["macos", "windows"])
def test_no_byte_is_changed(opened: int, system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends of lines and of files of other systems among them; and parts are written in any order."""
    become(system, monkeypatch)
    io, content = FileIO(), bytes(range(256)) * 40 + b"\r\n\n\x1a\r"
    for start in (5000, 0):
        write_all(io, opened, memoryview(content)[start : start + 5000 if start == 0 else None], start)
    for start, stop in ((7, 9999), (0, len(content)), (len(content) - 5, len(content))):
        got = bytearray(stop - start)
        read_all(io, opened, memoryview(got), start)
        assert got == content[start:stop]
    with pytest.raises(OSError, match="read 5 of 6"):
        read_all(io, opened, memoryview(bytearray(6)), len(content) - 5)


def test_threads_do_not_move_each_others_place(opened: int, monkeypatch: pytest.MonkeyPatch) -> None:
    become("windows", monkeypatch)
    io, seek, wrong = FileIO(), os.lseek, []

    def slow(*arguments: int) -> int:
        place = seek(*arguments)
        time.sleep(0.001)  # for another thread to come between
        return place

    write_all(io, opened, memoryview(bytes(range(200))), 0)
    monkeypatch.setattr(os, "lseek", slow)

    def work(own: int) -> None:
        for at in range(own, 60, 3):
            got = bytearray(1)
            if own:
                io.read(opened, memoryview(got), at)
            else:
                io.write(opened, memoryview(bytes([at])), at)
            wrong.extend([at] * (own and got[0] != at))

    threads = [threading.Thread(target=work, args=(own,)) for own in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("answer", ["no call", "not on this file system"])
def test_room_is_reserved_by_writing(opened: int, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it, and none of what lies before."""
    io, before = FileIO(), bytes(range(256)) * 16

    def refuse(*arguments: int) -> None:
        raise OSError(file_io.NO_ROOM_AHEAD[0], "not supported")

    monkeypatch.setattr(os, "posix_fallocate", None if answer == "no call" else refuse)
    write_all(io, opened, memoryview(before), 0)
    io.allocate(opened, len(before), (5 << 19) + 1)
    status = os.fstat(opened)
    assert status.st_size == len(before) + (5 << 19) + 1 <= 512 * status.st_blocks
    whole = bytearray(status.st_size)
    read_all(io, opened, memoryview(whole), 0)
    assert whole == before + bytes((5 << 19) + 1)


def test_a_disk_that_is_full_while_room_is_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", None)
    monkeypatch.setattr(file_io, "ZEROS_BYTES", 64)
    io = Faulty("write", 3, 28)
    pool = FastPool(KIVConfig(page_tokens=1, ram_bytes=0, spill_dir=tmp_path), io)
    cpu = torch.device("cpu")
    file = PageFile(Shape(1, 1, 4, 4, torch.float32, cpu), pool.resources(cpu))
    with pytest.raises(KIVBudgetError, match="must have room to grow"):
        file.ensure(100)
    assert (pool.ledger.used.disk, io.open) == (0, set())
    file.ensure(100)
    assert pool.ledger.used.disk == 3200


ASKED_FOR = "O_TMPFILE O_CLOEXEC posix_fallocate posix_fadvise pread preadv pwrite sysconf major"
EVERYWHERE = "open close dup read write lseek ftruncate getpid stat fstat listdir O_RDWR O_CREAT O_EXCL"


@pytest.mark.parametrize("system", ["macos", "windows"])
def test_what_is_taken_away(system: str) -> None:
    """Names that only Linux has, and none that every system has."""
    taken = set(lacks(system, os))
    assert {"O_TMPFILE", "posix_fallocate", "posix_fadvise"} <= taken
    assert taken.isdisjoint(EVERYWHERE.split())
    assert taken.issuperset(ASKED_FOR.split()) == (system == "windows")
    assert taken.isdisjoint(("preadv", "pwrite", "fork")) == (system == "macos")
