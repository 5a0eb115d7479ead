"""The text and the question: read and checked."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import BinaryIO

from kiv_reference.errors import KIVError, KIVUsageError, refuse

STDIN = "-"
"""In place of a file name: read the text from standard input."""

LARGEST_BYTES = 1 << 30
"""Longest text that is read, some hundred times what models take: a device never ends."""


def read_text(file: str) -> str:
    """Return the text of `file`, or of standard input if it is "-".

    Raises
    ------
    KIVUsageError
        There is no such file, it cannot be read, it is empty, it is not UTF-8 text, or it is
        larger than `LARGEST_BYTES`.
    """
    name = "standard input" if file == STDIN else file
    contents = _bounded(sys.stdin.buffer, name) if file == STDIN else _read_bytes(Path(file).expanduser())
    try:
        text = contents.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_text(name, f"a byte at offset {error.start} that is not UTF-8") from error
    if "\0" in text:
        raise _not_text(name, f"a NUL byte at offset {contents.index(0)}")
    if not text.strip():
        found = f"nothing but blanks and line breaks in {name}" if text else f"an empty {name}"
        raise refuse(KIVUsageError, "--file must hold some text", found, "Name a file with text in it.")
    return text


def check_question(question: str) -> str:
    """Return the question without surrounding spaces; refuse an empty one.

    Raises
    ------
    KIVUsageError
        It is empty.
    """
    if not question.strip():
        raise refuse(KIVUsageError, "The question must not be empty", repr(question), "Write what you want to know.")
    return question.strip()


def _read_bytes(path: Path) -> bytes:
    try:
        # Without waiting: a pipe that nobody writes to would keep it for ever.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                found = f"{path}, which is a pipe or a device"
                raise refuse(KIVUsageError, "--file must name a file", found, f"Pipe the text into --file {STDIN}.")
            return _bounded(file, str(path))
    except FileNotFoundError as error:
        raise refuse(KIVUsageError, "--file must name a file that exists", str(path), "Check the path.") from error
    except IsADirectoryError as error:
        raise refuse(KIVUsageError, "--file must name a file", f"the folder {path}", "Name a file in it.") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise refuse(
            KIVUsageError, "--file must be readable", f"{path} ({reason})", "Check its permissions."
        ) from error


def _bounded(file: BinaryIO, name: str) -> bytes:
    contents = file.read(LARGEST_BYTES + 1)
    if len(contents) > LARGEST_BYTES:
        raise refuse(
            KIVUsageError,
            f"--file must hold at most {LARGEST_BYTES:,} bytes",
            f"more than that in {name}",
            "Name a shorter text.",
        )
    return contents


def _not_text(name: str, finding: str) -> KIVError:
    remedy = "Convert it to UTF-8 text first, for instance with iconv or pdftotext."
    return refuse(KIVUsageError, "--file must be text in UTF-8", f"{finding} in {name}", remedy)
