"""Faults of the disk, injected at every call: a typed error, nothing lost, and the next call works."""

import errno
from dataclasses import replace

import pytest
import torch
from fast_helpers import SCALE, draw, feed, summary_bytes
from kiv_fast import FastPool
from kiv_fast.shim import FileIO
from kiv_reference.errors import KIVBudgetError, KIVError, KIVStorageError

CHUNKS = [60, *[1] * 30]


class Faulty(FileIO):
    """Fails the n-th call of one kind."""

    def __init__(self, method=None, at=0, error=errno.EIO, short=False):
        self.method, self.at, self.error, self.short = method, at, error, short
        self.calls = dict.fromkeys(("create", "allocate", "write", "read"), 0)
        self.open = set()

    def _count(self, method):
        self.calls[method] += 1
        if self.method == method and self.calls[method] == self.at:
            raise OSError(self.error, "injected")

    def create(self, folder):
        self._count("create")
        handle = super().create(folder)
        self.open.add(handle)
        return handle

    def allocate(self, handle, nbytes):
        self._count("allocate")
        super().allocate(handle, nbytes)

    def write(self, handle, buffer, offset):
        self._count("write")
        return super().write(handle, buffer[: max(1, len(buffer) // 3)] if self.short else buffer, offset)

    def read(self, handle, buffers, offset):
        self._count("read")
        if self.short:
            buffers = [buffers[0][: max(1, len(buffers[0]) // 3)]]
        return super().read(handle, buffers, offset)

    def close(self, handle):
        self.open.remove(handle)
        super().close(handle)


@pytest.fixture
def small(config, tmp_path):
    whole = FastPool(config).layer_store()
    feed(whole, draw(5, sum(CHUNKS)), CHUNKS)
    return replace(config, ram_bytes=summary_bytes(whole) + 2_500, spill_dir=tmp_path)


def steady(store, data):
    """Feed token by token; a call that fails is made again. Returns the outputs and the errors."""
    outputs, errors, start = [], [], 0

    def note(error):
        errors.append(error)
        assert len(errors) < 100, "an error that never ends"

    for n in CHUNKS:
        key, value, query = (part[:, :, start : start + n] for part in data)
        while store.length == start:
            try:
                store.append(key, value)
            except KIVError as error:
                note(error)
        output = None
        while output is None:
            try:
                output = store.attend(query, scale=SCALE)
            except KIVError as error:
                note(error)
        outputs.append(output)
        start += n
    return torch.cat(outputs, dim=2), errors


def test_short_counts_are_not_errors(small, config):
    data = draw(5, sum(CHUNKS))
    expected = feed(FastPool(config).layer_store(), data, CHUNKS)
    assert torch.equal(feed(FastPool(small, Faulty(short=True)).layer_store(), data, CHUNKS), expected)


@pytest.mark.parametrize("method", ["create", "allocate", "write", "read"])
def test_every_call_may_fail_once(small, config, method):
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


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("method", ["allocate", "write"])
def test_a_full_disk_is_a_budget_error(small, error, method):
    pool = FastPool(small, Faulty(method, 2, error))
    _, errors = steady(pool.layer_store(), draw(5, sum(CHUNKS)))
    assert [type(e) for e in errors] == [KIVBudgetError] or method == "allocate"
    assert all("Free disk space" in str(e) for e in errors)


def test_a_full_disk_refuses_before_anything_changes(small):
    class Full(FileIO):
        def allocate(self, handle, nbytes):
            raise OSError(errno.ENOSPC, "No space left on device")

    pool = FastPool(small, Full())
    store = pool.layer_store()
    data = draw(5, 60)
    with pytest.raises(KIVBudgetError, match="No space left"):
        store.append(*data[:2])
    assert store.length == 0
    assert pool.memory() == (0, 0, 0)
