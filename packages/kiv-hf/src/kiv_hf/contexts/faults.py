"""Errors of saved contexts: each names the file, what is wrong with it, and what to do."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kiv_fast.tiers.page_file import FULL
from kiv_reference.errors import (
    KIVBudgetError,
    KIVCorruptError,
    KIVError,
    KIVStorageError,
    KIVUsageError,
    refuse,
)

if TYPE_CHECKING:
    from collections.abc import Generator

MEND = "Restore the file from a copy, or read the text again."

_REMEDIES = {
    errno.EMFILE: "Raise the limit on open files (ulimit -n), or close some.",
    errno.ENFILE: "Close files of other programs.",
    errno.EACCES: "Give yourself the rights to it, or choose another folder.",
    errno.EPERM: "Give yourself the rights to it, or choose another folder.",
    errno.EROFS: "Choose a folder that can be written to.",
    errno.ENOENT: "Make the folder that it is to be in first.",
    errno.ENOTDIR: "Choose another path.",
    errno.ENOLCK: "Choose a folder on a disk of this machine.",
}


class Malformed(ValueError):
    """What a file says cannot be: a rule and what was found. Its reader knows the file (`corrupt`)."""

    def __init__(self, rule: str, got: object) -> None:
        super().__init__(rule, got)
        self.rule, self.got = rule, got


def corrupt(path: str, rule: str, got: object) -> KIVError:
    """Build the error of a file that is not what was written."""
    return refuse(KIVCorruptError, f"{path} must {rule} (docs/format.md)", str(got)[:200], MEND)


def not_ours(path: str, rule: str, got: str) -> KIVError:
    """Build the error of a path that is refused whatever it holds."""
    return refuse(KIVUsageError, f"{path} must {rule}", got, "Choose another folder, or take a copy of your own.")


@contextmanager
def well_formed(path: str) -> Generator[None]:
    """Name the file in which something malformed is found.

    Raises
    ------
    KIVCorruptError
        Something is.
    """
    try:
        yield
    except Malformed as error:
        raise corrupt(path, error.rule, error.got) from error


@contextmanager
def system_calls(path: str, what: str, writing: bool = False) -> Generator[None]:
    """Name the file on which the system refuses to do something.

    Raises
    ------
    KIVUsageError
        It is a symbolic link.
    KIVBudgetError
        There is no room to write it.
    KIVStorageError
        Anything else.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:  # not the system's: an error that has its name, or what a signal's handler raised
            raise
        got = error.strerror or str(error)
        if error.errno == errno.ELOOP:
            raise not_ours(path, "be no symbolic link", got) from error
        if writing and error.errno in FULL:
            rule = f"there must be room to {what} {path}"
            raise refuse(KIVBudgetError, rule, got, "Free disk space, or choose a larger disk.") from error
        remedy = _REMEDIES.get(error.errno, "Check the disk, or choose a folder on another one.")
        raise refuse(KIVStorageError, f"the system must be able to {what} {path}", got, remedy) from error
