"""Whether a ``.gguf`` file is whole: its header is walked and its size compared before anything loads it."""

from __future__ import annotations

import mmap
import os
import struct
from typing import TYPE_CHECKING

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from kiv_reference.errors import KIVUnsupportedError, refuse

from .model_files import check_fields

if TYPE_CHECKING:
    from pathlib import Path

SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of each kind of value but strings and arrays."""

INTEGERS = {4: "I", 5: "i", 10: "Q", 11: "q"}
"""Letters of `struct` for integers in which counts and widths are stored."""

STRING, ARRAY, UINT32 = 8, 9, 4
VERSIONS = (2, 3)
DEEPEST = 4
"""Most levels of arrays in arrays."""


class _Damaged(Exception):
    """What is wrong with the file."""


def check_gguf(path: Path) -> None:
    """Refuse a file that is no ``.gguf``, is truncated, or whose header makes no sense.

    Raises
    ------
    KIVUnsupportedError
        It says what was found.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise _Damaged("truncated: it is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                header = _Header(data)
                missing = header.end - size
        if missing > 0:
            raise _Damaged(f"truncated: {missing:,} of its bytes are missing at the end")
    except _Damaged as error:
        raise refuse(
            KIVUnsupportedError,
            "--model must be a hub id, a local folder, or a .gguf file that transformers can load",
            f"{str(path)!r}, which is {error}",
            "Download or copy the file again.",
        ) from error
    check_fields(header.numbers, repr(str(path)))


class _Header:
    """A walk over metadata and list of tensors; `end` is where the last one ends, `numbers` are the integers."""

    def __init__(self, data: mmap.mmap) -> None:
        self.numbers: dict[str, int] = {}
        self._data, self._at, self._order = data, 0, "<"
        if self._take(4) != b"GGUF":
            raise _Damaged("no .gguf: it does not begin with GGUF")
        version = self._number("I")
        if version not in VERSIONS:
            self._order, version = ">", int.from_bytes(version.to_bytes(4, "little"), "big")
        if version not in VERSIONS:
            raise _Damaged("no .gguf of version 2 or 3")
        tensors, fields = self._number("Q"), self._number("Q")
        self._alignment = 32
        for _ in range(fields):
            self._field()
        ends = [self._tensor() for _ in range(tensors)]
        self.end = -(-self._at // self._alignment) * self._alignment + max(ends) if ends else self._at

    def _field(self) -> None:
        key, kind = self._string(), self._number("I")
        if key == b"general.alignment" and kind == UINT32:
            self._alignment = self._number("I")
            if self._alignment == 0 or self._alignment % 8:
                raise _Damaged(f"damaged: it aligns its tensors to {self._alignment} bytes")
        elif kind in INTEGERS:
            self.numbers[key.decode(errors="replace")] = self._number(INTEGERS[kind])
        else:
            self._skip(kind, DEEPEST)

    def _skip(self, kind: int, depth: int) -> None:
        if kind in SCALARS:
            self._take(SCALARS[kind])
        elif kind == STRING:
            self._string()
        elif kind == ARRAY and depth:
            inner, count = self._number("I"), self._number("Q")
            if inner in SCALARS:
                self._take(SCALARS[inner] * count)
            else:
                for _ in range(count):  # each takes bytes of the file, which end it however large the count
                    self._skip(inner, depth - 1)
        else:
            raise _Damaged(f"damaged: it has a value of the unknown kind {kind} at offset {self._at}")

    def _tensor(self) -> int:
        """Return where the data of the next tensor ends, counted from the begin of all data."""
        self._string()
        elements = 1
        for _ in range(self._number("I")):
            elements *= self._number("Q")
        kind, offset = self._number("I"), self._number("Q")
        if kind not in {known.value for known in GGMLQuantizationType}:
            raise _Damaged(f"damaged or too new: it has a tensor of the unknown kind {kind}")
        block, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        return offset + elements // block * nbytes

    def _string(self) -> bytes:
        return self._take(self._number("Q"))

    def _number(self, code: str) -> int:
        return struct.unpack(self._order + code, self._take(struct.calcsize("<" + code)))[0]

    def _take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise _Damaged(f"truncated: it ends within its header, at byte {len(self._data):,}")
        taken, self._at = self._data[self._at : end] if count <= 1 << 20 else b"", end
        return taken
