"""A disk tier whose system calls fail on demand, and a store that is fed through the failures."""

import contextlib
import errno
import os
from unittest import mock

import torch
from fast_helpers import SCALE
from kiv_fast.tiers.file_io import FileIO
from kiv_reference.errors import KIVError

CHUNKS = [60, *[1] * 30]

METHODS = ("create", "allocate", "write", "read", "expect_random", "will_need", "close")
"""System calls of a store that only grows; `truncate` is that of one which shrinks."""


class Faulty(FileIO):
    """Does something else at the n-th call of one kind: raises an error, by default."""

    def __init__(self, method=None, at=0, error=errno.EIO, short=False):
        self.method, self.at, self.error, self.short = method, at, error, short
        self.calls = dict.fromkeys((*METHODS, "truncate"), 0)
        self.open = set()

    def fault(self):
        raise OSError(self.error, "injected")

    def _count(self, method):
        self.calls[method] += 1
        if self.method == method and self.calls[method] == self.at:
            self.fault()

    def create(self, folder):
        self._count("create")
        handle = super().create(folder)
        self.open.add(handle)
        return handle

    def allocate(self, handle, offset, nbytes):
        self._count("allocate")
        super().allocate(handle, offset, nbytes)

    def truncate(self, handle, nbytes):
        self._count("truncate")
        super().truncate(handle, nbytes)

    def write(self, handle, buffer, offset):
        self._count("write")
        return super().write(handle, buffer[: max(1, len(buffer) // 3)] if self.short else buffer, offset)

    def read(self, handle, buffers, offset):
        self._count("read")
        if self.short:
            buffers = [buffers[0][: max(1, len(buffers[0]) // 3)]]
        return super().read(handle, buffers, offset)

    def expect_random(self, handle):
        self._count("expect_random")
        super().expect_random(handle)

    def will_need(self, handle, offset, nbytes):
        self._count("will_need")
        super().will_need(handle, offset, nbytes)

    def close(self, handle):
        self.open.remove(handle)
        super().close(handle)  # as the system does: whatever a close answers, the file is closed
        self._count("close")


def unnamed_files(possible):
    """Whether the file system knows files without a name."""
    return contextlib.nullcontext() if possible else mock.patch.object(os, "O_TMPFILE", 0)


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
