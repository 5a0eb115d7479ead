"""What other systems lack, taken away from this one, and what they refuse, refused here."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from kiv_fast.ops.library import load

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    import pytest

LINUX_ALONE = (
    r"O_(TMPFILE|DIRECT|LARGEFILE|NOATIME|PATH|RSYNC)|POSIX_FADV_.*|MFD_.*|RWF_.*|EFD_.*|GRND_.*|XATTR_.*|P_PIDFD"
    r"|posix_(fallocate|fadvise)|sched_[gs]et(affinity|param|scheduler)|memfd_create|eventfd.*|pidfd_open|pipe2|splice"
    r"|copy_file_range|fdatasync|getrandom|.*xattr|[gs]etres[gu]id|MADV_(NO)?HUGEPAGE|MAP_(STACK|POPULATE|NORESERVE)"
)

POSIX_ALONE = (
    r"O_(?!APPEND|CREAT|EXCL|RDONLY|RDWR|TRUNC|WRONLY).*|RTLD_.*|SCHED_.*|ST_[A-Z]+|W[A-Z]+|EX_.*|[FP]_[A-Z]*LO?CK|PRIO_.*"
    r"|SEEK_(DATA|HOLE)|p(read|write)v?|(read|write)v|posix_.*|sched_.*|f?sysconf.*|f?pathconf.*|confstr.*|f?statvfs"
    r"|fork(pty)?|register_at_fork|wait.*|killpg|[gs]ete?[gu]id|[gs]et(pg.*|sid|priority|groups|grouplist|loadavg|re.*)"
    r"|l?f?chown|chroot|fch(dir|mod)|mk(fifo|nod)|major|minor|makedev|uname|nice|sync|lockf|sendfile|openpty|ttyname"
    r"|tc[gs]etpgrp|ctermid|getenvb|environb|spawn[lv]pe?|MAP_.*|MADV_.*|PROT_.*"
    r"|SIG(?!ABRT$|FPE$|ILL$|INT$|SEGV$|TERM$|_DFL$|_IGN$).*|setitimer|getitimer|ITIMER_.*|alarm|pause|pthread_.*|sig.*wait.*"
)

LACKS = {"macos": LINUX_ALONE, "windows": f"{LINUX_ALONE}|{POSIX_ALONE}"}
"""Names of `os`, `mmap` and `signal`, as pyright's stubs of the standard library have them for each system."""

MODULES = {"macos": (), "windows": ("fcntl", "resource", "pwd", "grp", "termios", "pty", "tty", "syslog")}
"""Modules that a system lacks."""

PLATFORM = {"macos": "darwin", "windows": "win32"}


def lacks(system: str, module: ModuleType) -> list[str]:
    """Tell which names of a module a system lacks."""
    return [name for name in vars(module) if re.fullmatch(LACKS[system], name)]


def open_files() -> set[str]:
    """Return the paths of all files that this process has open."""
    paths: set[str] = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the list itself
            paths.add(os.readlink(f"/proc/self/fd/{number}"))
    return paths


def unless_open(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a call on paths that refuses a file which is open, as Windows does."""

    def checked(*paths: Any, **more: Any) -> Any:
        if open_files() & {os.path.realpath(path) for path in paths}:
            raise PermissionError(errno.EACCES, "the file is in use", *paths)
        return call(*paths, **more)

    return checked


def become(system: str, patch: pytest.MonkeyPatch) -> None:
    """Take away what `system` lacks, while a test lasts."""
    for module in (os, mmap):
        for name in lacks(system, module):
            patch.delattr(module, name)
    patch.setattr(sys, "platform", PLATFORM[system])
    patch.setattr(tempfile, "_O_TMPFILE_WORKS", False)
    if system == "windows":
        # What it stands for there: a file with a name, which goes when it is closed.
        patch.setattr(tempfile, "TemporaryFile", tempfile.NamedTemporaryFile)
        for name in ("unlink", "remove", "rename", "replace"):
            patch.setattr(os, name, unless_open(getattr(os, name)))
        for name, module in list(sys.modules.items()):
            if name.startswith("kiv_fast.") and getattr(module, "load", None) is load:
                patch.setattr(module, "load", lambda: None)
    elif (library := load()) is not None:
        patch.setattr(library, "read", None)
