"""A disk tier whose system calls fail on demand, and a store that is fed through the failures."""

from __future__ import annotations

import contextlib
import errno
import tempfile
from typing import TYPE_CHECKING, Any, Literal, get_args
from unittest import mock

import torch
from fast_helpers import SCALE
from kiv_fast.tiers.file_io import FileIO
from kiv_reference.errors import KIVError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kiv_reference import LayerStore

CHUNKS = [60, *[1] * 30]

Method = Literal["create", "allocate", "write", "read", "expect_random", "will_need", "close", "truncate"]
METHODS: tuple[Method, ...] = tuple(method for method in get_args(Method) if method != "truncate")
"""System calls of a store that only grows; `truncate` is that of one which shrinks."""


class Faulty(FileIO):
    """Do something else at the n-th call of one kind: raise an error, by default."""

    read_many = FileIO.read_each

    def __init__(self, method: Method | None = None, at: int = 0, error: int = errno.EIO, short: bool = False) -> None:
        self.method, self.at, self.error, self.short = method, at, error, short
        self.calls: dict[str | None, int] = {None: 0, **dict.fromkeys(get_args(Method), 0)}
        self.open: set[int] = set()

    def fault(self) -> None:
        raise OSError(self.error, "injected")

    def _count(self, method: Method) -> None:
        self.calls[method] += 1
        if self.method == method and self.calls[method] == self.at:
            self.fault()

    def create(self, folder: str) -> int:
        self._count("create")
        handle = super().create(folder)
        self.open.add(handle)
        return handle

    def allocate(self, handle: int, offset: int, nbytes: int) -> None:
        self._count("allocate")
        super().allocate(handle, offset, nbytes)

    def truncate(self, handle: int, nbytes: int) -> None:
        self._count("truncate")
        super().truncate(handle, nbytes)

    def write(self, handle: int, buffer: memoryview, offset: int) -> int:
        self._count("write")
        return super().write(handle, buffer[: max(1, len(buffer) // 3)] if self.short else buffer, offset)

    def read(self, handle: int, buffer: memoryview, offset: int) -> int:
        self._count("read")
        return super().read(handle, buffer[: max(1, len(buffer) // 3)] if self.short else buffer, offset)

    def expect_random(self, handle: int) -> None:
        self._count("expect_random")
        super().expect_random(handle)

    def will_need(self, handle: int, offset: int, nbytes: int) -> None:
        self._count("will_need")
        super().will_need(handle, offset, nbytes)

    def close(self, handle: int) -> None:
        self.open.remove(handle)
        super().close(handle)  # as the system does: whatever a close answers, the file is closed
        self._count("close")


def unnamed_files(possible: bool) -> contextlib.AbstractContextManager[Any]:
    """Say whether the file system knows files without a name."""
    return contextlib.nullcontext() if possible else mock.patch.object(tempfile, "_O_TMPFILE_WORKS", False)


def steady(store: LayerStore, data: Sequence[torch.Tensor]) -> tuple[torch.Tensor, list[KIVError]]:
    """Feed token by token, again where a call fails, and return the outputs and the errors."""
    outputs: list[torch.Tensor] = []
    errors: list[KIVError] = []
    start = 0

    def note(error: KIVError) -> None:
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


class Full(Faulty):
    """A disk that has no more room once it is `full`."""

    full = False

    def allocate(self, handle: int, offset: int, nbytes: int) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "full")
        super().allocate(handle, offset, nbytes)
