"""Bytes as people write them."""

from __future__ import annotations

import re
from fractions import Fraction

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip


def parse_bytes(text: str) -> int:
    """Return the bytes that `text` names: a number with an optional unit, as in 512MiB, 2 GB or 1000000.

    Raises
    ------
    ValueError
        `text` is nothing of the kind.
    """
    match = re.fullmatch(r"\s*(\d{1,30}(?:\.\d{1,30})?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f"{text[:80]!r} is no size; write for instance 512MiB, 2GB or 1000000")
    return int(Fraction(match[1]) * _UNITS[match[2].upper()])
