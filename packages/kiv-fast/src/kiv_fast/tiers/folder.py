"""Where the disk tier puts its files: a folder on a disk."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import warnings

import platformdirs
from kiv_reference.errors import KIVUsageError, refuse

from .file_io import FileIO


def folder_for(configured: str | os.PathLike[str] | None) -> str:
    """Return the folder for files of pages: the configured one, else one for temporary files that is not in memory.

    Raises
    ------
    KIVUsageError
        If no file can be made there, or if it is kept in memory.
    """
    if configured is not None:
        place = os.path.abspath(configured)
        if not os.path.isdir(place):
            raise refuse(KIVUsageError, "spill_dir must be an existing folder", repr(place), "Create it first.")
        if in_memory(place):
            rule = "spill_dir must be on a disk, not in memory"
            raise refuse(KIVUsageError, rule, repr(place), "Choose a folder on a disk.")
        return _writable(place)
    try:
        place = tempfile.gettempdir()
        if not in_memory(place):
            return _writable(place)
        cache = platformdirs.user_cache_path("kiv")
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        if error.errno is None:
            raise
        rule = "the disk tier needs a folder for its files"
        raise refuse(KIVUsageError, rule, str(error), "Set spill_dir to a folder on a disk.") from error
    warnings.warn(f"{place} is kept in memory; cold pages go to {cache} instead.", RuntimeWarning, stacklevel=2)
    return _writable(os.fspath(cache))


def _writable(place: str) -> str:
    """Return the folder, in which a file can be made: a read-only one shows here and not at the first eviction."""
    io = FileIO()
    try:
        io.close(io.create(place))
    except OSError as error:
        if error.errno is None:  # not the system's, but what a signal's handler raised
            raise
        rule = "spill_dir must be a folder in which files can be made"
        raise refuse(KIVUsageError, rule, f"{place!r} ({error})", "Set spill_dir to another one.") from error
    return place


def in_memory(place: str, mounts: str = "/proc/self/mountinfo") -> bool:
    """Tell whether a folder is on a file system that is kept in memory, or on an overlay that writes to one.

    A mount is known by its device, whatever its path looks like and whatever was mounted over it.
    """
    if sys.platform != "linux":  # nothing is known of other systems, and nothing is refused
        return False
    try:
        device = os.stat(place).st_dev
        with open(mounts, encoding="utf-8", errors="surrogateescape") as lines:
            fields = [line.split() for line in lines]
    except OSError as error:  # not a folder of this process, or no /proc: as little is known
        if error.errno is None:
            raise
        return False
    for line in fields:
        if line[2] == f"{os.major(device)}:{os.minor(device)}":
            kind, _, options = line[line.index("-") + 1 :]
            upper = [option[len("upperdir=") :] for option in options.split(",") if option.startswith("upperdir=")]
            above = [re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), folder) for folder in upper]
            return kind in ("tmpfs", "ramfs", "devtmpfs") or any(in_memory(folder, mounts) for folder in above)
    return False
