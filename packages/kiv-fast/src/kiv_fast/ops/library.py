"""The compiled operations: where they are, which instructions they use, and whose threads."""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache
from pathlib import Path

import torch

from .structures import Int, Long, Pointer

LEVELS = ("any processor", "AVX2", "AVX-512 VNNI")

_CALLS = {
    "estimate": (Pointer, Pointer, Pointer),
    "best": (Pointer, Pointer, Pointer),
    "select": (Pointer, Pointer, Pointer, Pointer, Pointer),
    "attend": (Pointer, Pointer),
    "finite": (Pointer, Long, Long, Int),
    "append": (Pointer, Long),
    "held": (Pointer, Pointer, Pointer),
    "missed": (Pointer, Pointer),
}


class Library:
    """The compiled operations for the best instructions that are allowed.

    Parameters
    ----------
    path : of the shared library
    most : int, optional
        The best level that is allowed; as ``ATEN_CPU_CAPABILITY`` says, by which torch chooses its own, unless given.

    Attributes
    ----------
    level : int
        Into `LEVELS`.
    instructions : str
        One of `LEVELS`, and "one thread" where torch's threads were not found.
    """

    def __init__(self, path: Path, most: int | None = None) -> None:
        self._library = ctypes.CDLL(str(path))
        allowed = {"default": 0, "avx2": 1}.get(os.environ.get("ATEN_CPU_CAPABILITY", ""), 2)
        self.level = min(self._library.kiv_level(), allowed if most is None else most)
        self._library.kiv_operations.restype = ctypes.POINTER(Pointer * len(_CALLS))
        table = self._library.kiv_operations(self.level).contents
        calls = {
            name: ctypes.CFUNCTYPE(Int, *arguments)(table[place])
            for place, (name, arguments) in enumerate(_CALLS.items())
        }
        self.estimate, self.best, self.select = calls["estimate"], calls["best"], calls["select"]
        self.attend, self.finite, self.append = calls["attend"], calls["finite"], calls["append"]
        self.held, self.missed = calls["held"], calls["missed"]
        self.read = getattr(self._library, "kiv_read", None)  # on Linux, where the C library has it
        if self.read is not None:
            self.read.argtypes = (Int, Long, Pointer, Pointer, Pointer, Pointer, Int)
        self.copy_rows = self._library.kiv_copy_rows
        self.copy_rows.argtypes, self.copy_rows.restype = (Long, Long, Pointer, Pointer, Pointer, Pointer, Int), None
        parallel = _torch_threads()
        self.instructions = LEVELS[self.level] + ("" if parallel is not None else ", one thread")
        if parallel is not None:
            self._library.kiv_threads(parallel)


def _torch_threads() -> ctypes.c_void_p | None:
    """Find the function by which torch's own OpenMP runtime begins a parallel region; None if there is none."""
    bundled = (Path(torch.__file__).parent / "lib").glob("libgomp*")
    for place in (*map(str, bundled), "libgomp.so.1"):
        try:
            return ctypes.cast(ctypes.CDLL(place).GOMP_parallel, Pointer)
        except (OSError, AttributeError):
            continue
    return None


UNUSABLE = (OSError, AttributeError)
"""What loading raises: the file is no library of this system, or lacks what this version calls."""


def library_path() -> Path:
    """Locate the library: beside this module, unless ``KIV_LIBRARY`` names another file, one built for a trial."""
    suffix = {"Windows": "dll", "Darwin": "dylib"}.get(platform.system(), "so")
    return Path(os.environ.get("KIV_LIBRARY") or Path(__file__).parent / f"libkiv.{suffix}")


@cache
def load() -> Library | None:
    """Return the compiled operations; None where there are none, of which `why_not` tells more."""
    try:
        return Library(library_path()) if built() else None
    except UNUSABLE:
        return None


def built() -> bool:
    """Tell whether this installation has compiled operations, whether or not they load."""
    return library_path().exists()


def why_not() -> str:
    """Say why `load` returned None."""
    if not built():
        return "this installation has none: it was built without a C compiler, or for another system"
    try:
        Library(library_path())
    except UNUSABLE as error:
        return f"the library does not load: {error}"
    return "it loads now"
