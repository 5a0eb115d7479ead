"""Bytes and dtypes as people write them."""

from __future__ import annotations

import re

DTYPES = ("float32", "bfloat16", "float16")
"""Names of the dtypes that a model may be loaded in, as torch has them."""

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip


def parse_bytes(text: str) -> int:
    """Return the bytes that `text` names: a number with an optional unit, as in 512MiB, 2 GB or 1000000.

    Raises
    ------
    ValueError
        `text` is nothing of the kind.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f"{text!r} is no size; write for instance 512MiB, 2GB or 1000000")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def format_bytes(count: int) -> str:
    """Return `count` bytes with three digits and a decimal unit, as in 1.23 GB."""
    value, unit = float(count), "B"
    for bigger in ("KB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, bigger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
