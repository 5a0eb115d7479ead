"""The folder of a context: its paths, who may use it, and the lock of whoever writes."""

from __future__ import annotations

import os
import re
import stat
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from kiv_reference.errors import KIVUsageError, refuse

from .faults import not_ours, system_calls
from .segments import SEGMENT_NAME

if TYPE_CHECKING:
    from collections.abc import Generator

    from kiv_fast.tiers.durable_io import DurableIO

OWN = rf"LOCK|seg|MANIFEST\.json|MANIFEST\.{SEGMENT_NAME}\.tmp"
"""What a context's folder holds."""


def check_name(name: str) -> str:
    """Return the name of a context in a store of them, if it is one.

    Raises
    ------
    KIVUsageError
        It might lead out of the store, or mean something else on another system.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", name):
        rule = "a context's name must be 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-', and not begin with a dot"
        raise refuse(KIVUsageError, rule, repr(name[:80]), "Choose another name.")
    return name


class Folder:
    """Paths of a context, whose folder is anywhere its user says, be it by a link."""

    def __init__(self, path: str | os.PathLike[str], io: DurableIO) -> None:
        self.path, self.io = os.path.realpath(path), io
        self.manifest, self.lock, self.segments = (os.path.join(self.path, n) for n in ("MANIFEST.json", "LOCK", "seg"))

    def segment(self, name: str) -> str:
        """Return the path of a segment."""
        return os.path.join(self.segments, f"{name}.safetensors")

    def temporary(self, name: str) -> str:
        """Return the path of a manifest that is not in place yet."""
        return os.path.join(self.path, f"MANIFEST.{name}.tmp")

    def left_over(self, named: set[str]) -> list[str]:
        """List files that some writer left: segments that are not named, and manifests that were not put in place."""
        ours = (re.fullmatch(rf"({SEGMENT_NAME})\.safetensors", file) for file in self.io.names(self.segments))
        paths = [self.segment(match[1]) for match in ours if match is not None and match[1] not in named]
        written = re.compile(OWN.rpartition("|")[2])
        return paths + [os.path.join(self.path, file) for file in self.io.names(self.path) if written.fullmatch(file)]

    def prepare(self) -> None:
        """Make the folder and what every context has, if they are not there.

        Raises
        ------
        KIVUsageError
            It holds something else, or belongs to somebody else.
        KIVStorageError, KIVBudgetError
        """
        with system_calls(self.path, "make", writing=True):
            if self._make(self.path):
                self.io.sync_folder(os.path.dirname(self.path))
            self.check(self.path, follow=True)
            others = [name for name in self.io.names(self.path) if not re.fullmatch(OWN, name)]
            if others:
                rule = f"{self.path} must be empty, new, or a saved context"
                raise refuse(KIVUsageError, rule, f"one with {sorted(others)[0]!r}", "Choose another folder.")
            if self._make(self.segments):
                self.io.sync_folder(self.path)
            self.check(self.segments)

    def _make(self, path: str) -> bool:
        try:
            self.io.make_folder(path)
        except FileExistsError:
            return False
        return True

    def check(self, path: str, follow: bool = False) -> None:
        """Refuse what is not a folder of this user's own; raises OSError too."""
        status = self.io.status_of(path, follow)
        if not stat.S_ISDIR(status.st_mode):
            raise not_ours(path, "be a folder", "something else, or a link")
        check_owner(path, status)

    @contextmanager
    def locked(self) -> Generator[None]:
        """Be the one who writes.

        Raises
        ------
        KIVUsageError
            Another one is.
        KIVStorageError, KIVBudgetError
        """
        with ExitStack() as stack:
            with system_calls(self.lock, "lock", writing=True):
                handle = self.io.open_lock(self.lock)
                stack.callback(close_quietly, self.io, handle)
                check_file(self.lock, self.io.status(handle))
                if not self.io.lock(handle):
                    rule = f"one at a time can write to {self.path}"
                    raise refuse(KIVUsageError, rule, "two, now", "Wait until the other one has ended.")
            yield


def close_quietly(io: DurableIO, handle: int) -> None:
    """Close a file to which nothing was written: whatever the system says, it is closed, and nothing is lost."""
    with suppress(OSError):
        io.close(handle)


def check_file(path: str, status: os.stat_result) -> None:
    """Refuse what is not a plain file of this user's own."""
    if not stat.S_ISREG(status.st_mode):
        raise not_ours(path, "be a file", "something else")
    check_owner(path, status)


def check_owner(path: str, status: os.stat_result) -> None:
    """Refuse what is another user's, where the system knows of users."""
    user = getattr(os, "geteuid", lambda: status.st_uid)()
    if status.st_uid != user:
        raise not_ours(path, "belong to the user who opens it", f"user {status.st_uid}, not {user}")
