"""What happens around the disk tier: the process killed, signals, files cut short, folders deleted, memory refused."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from fast_helpers import draw, feed
from faulty_disk import CHUNKS, METHODS, Faulty, Method, steady, unnamed_files
from kiv_fast import FastPool
from kiv_fast.tiers.file_io import FileIO
from kiv_reference.errors import KIVStorageError, KIVUsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from kiv_reference import KIVConfig


class Killing(Faulty):
    """The process ends at the n-th call, as kill -9 ends it."""

    def fault(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def kill(config: KIVConfig, data: Sequence[torch.Tensor], method: Method, at: int, unnamed: bool) -> None:
    """Feed a store until its process ends at the n-th call of `method`."""
    with unnamed_files(unnamed):
        pool = FastPool(config, Killing(method, at))
        feed(pool.layer_store(), data, CHUNKS)
        pool.close()


@pytest.fixture(scope="module")
def server() -> Any:
    """Forks processes from one without threads: in a fork of this one, torch would wait for its threads for ever."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kiv_fast"])
    return context


@pytest.mark.parametrize("unnamed", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_kill_9_leaves_no_file(small: KIVConfig, method: Method, unnamed: bool, tmp_path: Path, server: Any) -> None:
    data = draw(5, sum(CHUNKS))
    counting = Faulty()
    with unnamed_files(unnamed):
        pool = FastPool(small, counting)
        feed(pool.layer_store(), data, CHUNKS)
        pool.close()
    for at in {1, (counting.calls[method] + 1) // 2, counting.calls[method]}:
        child = server.Process(target=kill, args=(small, data, method, at, unnamed))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL, "the call was never made"
        assert list(tmp_path.iterdir()) == []


def test_a_process_with_many_tables_can_fork(config: KIVConfig) -> None:
    stores = [FastPool(config).layer_store() for _ in range(8)]
    for store in stores:
        feed(store, draw(5, 60), [60])
    child = os.fork()
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_signals_interrupt_nothing(small: KIVConfig, config: KIVConfig) -> None:
    data = draw(5, sum(CHUNKS))
    expected = feed(FastPool(config).layer_store(), data, CHUNKS)
    seen = []
    before = signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        output = feed(FastPool(small).layer_store(), data, CHUNKS)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(seen) > 10
    assert torch.equal(output, expected)


def test_a_file_cut_short_is_an_error_and_no_zeros(small: KIVConfig) -> None:
    io = Faulty()
    pool = FastPool(small, io)
    store, data = pool.layer_store(), draw(5, sum(CHUNKS))
    feed(store, data, CHUNKS)
    assert io.open
    for handle in io.open:
        os.ftruncate(handle, 0)
    with pytest.raises(KIVStorageError, match=r"read 0 of \d+ bytes on bytes \d+ to \d+ of a scratch file"):
        store.crop(8)
    assert store.length == sum(CHUNKS)
    store.reset()
    assert pool.memory() == (0, 0, 0)
    assert not io.open
    assert steady(store, data)[1] == []


def test_a_folder_that_is_deleted_keeps_what_it_holds(small: KIVConfig, config: KIVConfig, tmp_path: Path) -> None:
    place = tmp_path / "spill"
    place.mkdir()
    data = draw(5, sum(CHUNKS))
    expected = feed(FastPool(config).layer_store(), data, CHUNKS)
    pool = FastPool(replace(small, spill_dir=place))
    store, late = pool.layer_store(), FastPool(replace(small, spill_dir=place))
    half = CHUNKS[: len(CHUNKS) // 2]
    first = feed(store, data, half)
    place.rmdir()
    rest = tuple(part[:, :, sum(half) :] for part in data)
    assert torch.equal(torch.cat([first, feed(store, rest, CHUNKS[len(half) :])], dim=2), expected)
    with pytest.raises(KIVUsageError, match="existing folder"):
        late.layer_store().append(*data[:2])
    assert late.memory() == (0, 0, 0)


def test_nobody_else_can_open_a_file(tmp_path: Path) -> None:
    for unnamed in (True, False):
        with unnamed_files(unnamed):
            handle = FileIO().create(str(tmp_path))
        status = os.fstat(handle)
        assert (status.st_mode & 0o777, status.st_nlink) == (0o600, 0)
        assert not os.get_inheritable(handle)
        os.close(handle)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_lose_its_name_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unlink(path: Path) -> None:
        raise PermissionError("sticky")

    monkeypatch.setattr(os, "unlink", unlink)
    before = len(os.listdir("/proc/self/fd"))
    with unnamed_files(False), pytest.raises(PermissionError):
        FileIO().create(str(tmp_path))
    assert len(os.listdir("/proc/self/fd")) == before
