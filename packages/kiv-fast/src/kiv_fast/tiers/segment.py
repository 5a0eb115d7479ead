"""One file of cold pages: its head, and which of its places are free."""

from __future__ import annotations

import json
import math
import os
import struct
from dataclasses import dataclass, field

import torch

from ..pages.block_table import IdPool
from ..shape import Shape

ALIGN = 4096

DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16"}


def header(shape: Shape, page_tokens: int, pages: int) -> bytes:
    """Make the head of a segment, data aligned to 4096 bytes."""
    key = [pages, shape.heads, page_tokens, shape.key_width]
    value = [pages, shape.heads, page_tokens, shape.value_width]
    key_bytes, value_bytes = (n * shape.dtype.itemsize for n in (math.prod(key), math.prod(value)))
    kind = DTYPES[shape.dtype]
    text = json.dumps(
        {
            "key": {"dtype": kind, "shape": key, "data_offsets": [0, key_bytes]},
            "value": {"dtype": kind, "shape": value, "data_offsets": [key_bytes, key_bytes + value_bytes]},
        }
    ).encode()
    padded = -(-(8 + len(text)) // ALIGN) * ALIGN - 8
    return struct.pack("<Q", padded) + text.ljust(padded, b" ")


@dataclass(eq=False)
class Segment:
    """One file."""

    first: int  # of its places among those of all files
    pages: int
    start: int  # of the data
    nbytes: int  # of the whole file
    numbers: IdPool = field(default_factory=IdPool)  # of the pages in it
    file: list[int] = field(default_factory=list[int])  # its handle, as long as it is open
    process: int = field(default_factory=os.getpid)  # that made it

    @property
    def handle(self) -> int:
        """The file."""
        return self.file[0]

    @property
    def free(self) -> int:
        """Pages that fit in, once there is a file."""
        return self.pages - self.numbers.used if self.file else 0

    @property
    def mine(self) -> bool:
        """Whether this process made the file, and not one that it was forked from."""
        return self.process == os.getpid()


def first_place(segment: Segment) -> int:
    """Return what the segments of an arena are sorted by."""
    return segment.first
