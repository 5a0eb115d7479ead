"""System calls of files that have names and last: those of saved contexts, in the same place as the disk tier's.

A call that not every system has is asked for by name, and there is a way without it, or an error that says so.
"""

from __future__ import annotations

import errno
import os
from importlib import import_module
from types import ModuleType

from .file_io import FileIO

BUSY = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
"""What systems answer where another has the lock."""

NO_SUCH_SYNC = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY)
"""What file systems answer that have nothing to do, or another way to do it."""


def _module(name: str) -> ModuleType | None:
    """Return a module that only some systems have."""
    try:
        return import_module(name)
    except ImportError:
        return None


def _flags(*names: str) -> int:
    """Return flags of `os.open` together, without those that the system lacks."""
    flags = 0
    for name in ("O_BINARY", "O_CLOEXEC", "O_NOFOLLOW", *names):
        flags |= getattr(os, name, 0)
    return flags


class DurableIO(FileIO):
    """Files by name, for their owner alone. A symbolic link as the last part of a path is refused (ELOOP)."""

    def make_folder(self, path: str) -> None:
        """Make a folder that is its owner's alone."""
        os.mkdir(path, 0o700)

    def create_named(self, path: str) -> int:
        """Make a file that was not there, its owner's alone; returns its descriptor."""
        return os.open(path, os.O_RDWR | _flags("O_CREAT", "O_EXCL"), 0o600)

    def open_named(self, path: str) -> int:
        """Open a file to read; returns its descriptor. A pipe does not keep the caller waiting."""
        self._refuse_link(path)
        return os.open(path, os.O_RDONLY | _flags("O_NONBLOCK"))

    def open_lock(self, path: str) -> int:
        """Open a file to lock it, which is made where there is none; returns its descriptor."""
        self._refuse_link(path)
        return os.open(path, os.O_RDWR | _flags("O_CREAT", "O_NONBLOCK"), 0o600)

    def _refuse_link(self, path: str) -> None:
        if not hasattr(os, "O_NOFOLLOW") and os.path.islink(path):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)

    def lock(self, handle: int) -> bool:
        """Lock a file until its descriptor is closed; False if another has it locked. Nothing is waited for."""
        fcntl, msvcrt = _module("fcntl"), _module("msvcrt")
        if fcntl is None and msvcrt is None:
            raise OSError(errno.ENOLCK, "this system has no locks of files")
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            elif msvcrt is not None:
                msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno not in BUSY:
                raise
            return False
        return True

    def status(self, handle: int) -> os.stat_result:
        """Tell size, kind and owner of an open file."""
        return os.fstat(handle)

    def status_of(self, path: str, follow: bool = False) -> os.stat_result:
        """Tell the kind and owner of what has this path."""
        return os.stat(path, follow_symlinks=follow)

    def names(self, folder: str) -> list[str]:
        """List what a folder holds."""
        return os.listdir(folder)

    def sync(self, handle: int) -> None:
        """Return once a file's bytes are on the disk."""
        fcntl = _module("fcntl")
        if (full := getattr(fcntl, "F_FULLFSYNC", None)) is not None and fcntl is not None:
            try:  # macOS: fsync leaves them in the disk's own memory
                fcntl.fcntl(handle, full)
                return
            except OSError as error:
                if error.errno not in NO_SUCH_SYNC:
                    raise
        os.fsync(handle)

    def sync_folder(self, path: str) -> None:
        """Return once the names in a folder are on the disk; nothing where a folder cannot be opened (Windows)."""
        if (kind := getattr(os, "O_DIRECTORY", None)) is None:
            return
        handle = os.open(path, os.O_RDONLY | kind | _flags())
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in NO_SUCH_SYNC:
                raise
        finally:
            os.close(handle)

    def replace(self, path: str, target: str) -> None:
        """Give a file another name, in one step, whatever had it before."""
        os.replace(path, target)

    def remove(self, path: str) -> None:
        """Take a file's name away; who has it open goes on to read it."""
        os.remove(path)
