"""A system that is looked at, one that fails at a call, and one that reads other bytes than there are."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

from kiv_fast.tiers.durable_io import DurableIO
from kiv_hf.contexts.verify import verify
from kiv_reference.errors import KIVCorruptError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CALLS = (
    "make_folder", "create_named", "open_named", "open_lock", "lock", "status", "status_of", "names", "sync",
    "sync_folder", "replace", "remove", "write", "read", "expect_random", "will_need", "close",
)  # fmt: skip


class WatchedIO(DurableIO):
    """Notes calls, and fails at one of them; nothing waits for the disk."""

    read_many = DurableIO.read_each

    def __init__(self, at: int = 0, error: int = errno.EIO, short: bool = False) -> None:
        self.at, self.error, self.short = at, error, short
        self.calls: list[str] = []
        self.open: set[int] = set()
        self.written = 0

    def sync(self, handle: int) -> None:
        os.fstat(handle)

    def sync_folder(self, path: str) -> None:
        os.stat(path)

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        return self._watched(name, found) if name in CALLS else found

    def _watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any) -> Any:
            self.calls.append(name)
            if name == "close":
                self.open.remove(arguments[0])
                call(*arguments)  # as the system does: whatever it answers, the file is closed
            if len(self.calls) == self.at:
                raise OSError(self.error, os.strerror(self.error))
            if name == "close":
                return None
            if self.short and name in ("read", "write"):
                handle, buffer, offset = arguments
                arguments = handle, buffer[: max(1, len(buffer) // 3)], offset
            result = call(*arguments)
            if name in ("create_named", "open_named", "open_lock"):
                self.open.add(result)
            self.written += result if name == "write" else 0
            return result

        return watched


class FlippedIO(DurableIO):
    """Reads one bit of one file turned over."""

    read_many = DurableIO.read_each

    def __init__(self, path: str, at: int, bit: int) -> None:
        self.path, self.at, self.bit = path, at, bit
        self.handle = -1

    def open_named(self, path: str) -> int:
        handle = super().open_named(path)
        if path == self.path:
            self.handle = handle
        return handle

    def read(self, handle: int, buffer: memoryview, offset: int) -> int:
        count = super().read(handle, buffer, offset)
        if handle == self.handle and offset <= self.at < offset + count:
            buffer[self.at - offset] ^= self.bit
        return count


def assert_verify_fails(folder: Path, io: DurableIO | None = None) -> None:
    try:
        assert verify(folder, io)
    except KIVCorruptError:
        return
