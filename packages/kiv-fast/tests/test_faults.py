"""Faults of the disk, injected at every call: a typed error, nothing lost, and the next call works."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
import torch
from fast_helpers import draw, feed
from faulty_disk import CHUNKS, METHODS, Faulty, Method, steady
from kiv_fast import FastPool
from kiv_fast.tiers.file_io import FileIO
from kiv_reference.errors import KIVBudgetError, KIVStorageError

if TYPE_CHECKING:
    from kiv_reference import KIVConfig


def test_short_counts_are_not_errors(small: KIVConfig, config: KIVConfig) -> None:
    data = draw(5, sum(CHUNKS))
    expected = feed(FastPool(config).layer_store(), data, CHUNKS)
    assert torch.equal(feed(FastPool(small, Faulty(short=True)).layer_store(), data, CHUNKS), expected)


@pytest.mark.parametrize("method", ["create", "allocate", "write", "read"])
def test_every_call_may_fail_once(small: KIVConfig, config: KIVConfig, method: Method) -> None:
    data = draw(5, sum(CHUNKS))
    expected = feed(FastPool(config).layer_store(), data, CHUNKS)
    counting = Faulty()
    feed(FastPool(small, counting).layer_store(), data, CHUNKS)
    total = counting.calls[method]
    assert total > 0
    for at in sorted({1, 2, 3, *range(1, total + 1, max(1, total // 12)), total}):
        io = Faulty(method, at)
        pool = FastPool(small, io)
        output, errors = steady(pool.layer_store(), data)
        assert len(errors) == (at <= total), (method, at)
        assert torch.equal(output, expected), (method, at)
        for error in errors:
            assert isinstance(error, KIVStorageError)
            assert isinstance(error, OSError)
            assert "injected" in str(error)
        pool.close()
        assert not io.open, "a file stayed open"
        assert pool.memory() == (0, 0, 0)


@pytest.mark.parametrize("error", ["EIO", "EMFILE", "ENFILE", "ENOMEM", "EACCES", "EROFS", "ENOSPC", "EDQUOT", "EFBIG"])
@pytest.mark.parametrize("method", [method for method in METHODS if method != "close"])
def test_every_error_of_every_call_is_named_and_passes(
    small: KIVConfig, config: KIVConfig, method: Method, error: str
) -> None:
    data, number = draw(5, sum(CHUNKS)), getattr(errno, error)
    expected = feed(FastPool(config).layer_store(), data, CHUNKS)
    io = Faulty(method, 1, number)
    pool = FastPool(small, io)
    output, errors = steady(pool.layer_store(), data)
    (raised,) = errors
    full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and method not in ("read", "will_need")
    assert type(raised) is (KIVBudgetError if full else KIVStorageError)
    assert f"of a scratch file in {small.spill_dir}" in str(raised)
    assert isinstance(raised.__cause__, OSError)
    assert raised.__cause__.errno == number
    assert torch.equal(output, expected)
    pool.close()
    assert not io.open
    assert pool.memory() == (0, 0, 0)


def test_a_file_that_does_not_close_well_is_gone_all_the_same(small: KIVConfig, config: KIVConfig) -> None:
    io = Faulty("close", 1)
    pool = FastPool(small, io)
    store = pool.layer_store()
    feed(store, draw(5, sum(CHUNKS)), CHUNKS)
    with pytest.warns(RuntimeWarning, match="not closed well.*injected"):
        store.reset()
    assert io.calls["close"] > 0
    assert not io.open
    assert pool.memory() == (0, 0, 0)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("method", ["allocate", "write"])
def test_a_full_disk_is_a_budget_error(small: KIVConfig, error: int, method: Method) -> None:
    pool = FastPool(small, Faulty(method, 2, error))
    _, errors = steady(pool.layer_store(), draw(5, sum(CHUNKS)))
    assert [type(e) for e in errors] == [KIVBudgetError] or method == "allocate"
    assert all("Free disk space" in str(e) for e in errors)


def test_a_full_disk_refuses_before_anything_changes(small: KIVConfig) -> None:
    class Full(FileIO):
        def allocate(self, handle: int, offset: int, nbytes: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    pool = FastPool(small, Full())
    store = pool.layer_store()
    data = draw(5, 60)
    with pytest.raises(KIVBudgetError, match="No space left"):
        store.append(*data[:2])
    assert store.length == 0
    assert pool.memory() == (0, 0, 0)
