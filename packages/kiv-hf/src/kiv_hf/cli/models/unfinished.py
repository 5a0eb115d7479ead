"""Folders of unfinished conversions: one for each process, gone when it ends, swept up after it was killed."""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import xxhash

if TYPE_CHECKING:
    from collections.abc import Generator

PREFIX = ".converting-"
"""How the names of such folders begin; machine, process and when it began follow."""

FORGOTTEN_S = 24 * 3600
"""Seconds after which a folder is stale whose process cannot be seen from here, as on a shared disk."""

CLOCK_S = 60
"""Seconds by which a corrected clock may move the time at which a process began."""


@contextmanager
def scratch_folder(parent: Path) -> Generator[Path]:
    """Make a folder for an unfinished conversion; it goes at the end, whatever ends it."""
    scratch = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{_machine()}-{os.getpid()}-{_began(os.getpid())}-", dir=parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what killed processes have left of their conversions, in the folders within `folder`."""
    for scratch in folder.glob(f"*/{PREFIX}*"):
        if _is_stale(scratch):
            shutil.rmtree(scratch, ignore_errors=True)


def _is_stale(scratch: Path) -> bool:
    owner = re.fullmatch(rf"{re.escape(PREFIX)}([0-9a-f]+)-(\d+)-(\d+)-.*", scratch.name)
    if owner is not None and owner[1] == _machine():
        began = _began(int(owner[2]))
        return began is None or abs(began - int(owner[3])) > CLOCK_S
    try:
        return time.time() - scratch.stat().st_mtime > FORGOTTEN_S
    except FileNotFoundError:  # its process has ended meanwhile
        return False


def _machine() -> str:
    return xxhash.xxh3_64_hexdigest(platform.node().encode())


def _began(pid: int) -> int | None:
    """Return the second in which a process began, or None if it runs no more: numbers are used again."""
    try:
        return int(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None
