"""The header of a segment: a safetensors file whose data begin at a multiple of 4,096 bytes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, cast

from .faults import Malformed
from .strict_json import Fields, compact, integer, parse
from .tensors import DTYPES, name_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import torch

ALIGNED = 4096
LONGEST_HEADER = 1 << 26
MOST_DIMENSIONS = 16
SEGMENT_NAME = r"[0-9a-f]{32}"
TENSOR_NAME = r"[a-z0-9_.]{1,64}"


class Part(NamedTuple):
    """A tensor of a segment, and the byte of the file at which it begins."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int

    @property
    def nbytes(self) -> int:
        """Bytes of it."""
        return math.prod(self.shape) * self.dtype.itemsize


def header_of(tensors: Mapping[str, tuple[torch.dtype, Sequence[int]]]) -> tuple[bytes, dict[str, Part]]:
    """Return the first bytes of a segment with tensors of these types and shapes, and where each lies.

    The widest type comes first, so that each number lies at a multiple of its size.
    """
    fields: dict[str, object] = {}
    places: dict[str, Part] = {}
    begin = 0
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: -item[1][0].itemsize):
        places[name] = part = Part(dtype, tuple(shape), begin)
        end = begin + part.nbytes
        fields[name] = {"dtype": name_of(dtype), "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = compact(fields)
    text += b" " * (-(len(text) + 8) % ALIGNED)
    start = 8 + len(text)
    moved = {name: part._replace(begin=part.begin + start) for name, part in places.items()}
    return len(text).to_bytes(8, "little") + text, moved


def end_of(header_bytes: int, parts: Iterable[Part]) -> int:
    """Return how long a segment is."""
    return header_bytes + sum(part.nbytes for part in parts)


def parts_of(header: bytes, file_bytes: int) -> dict[str, Part]:
    """Return what a segment's header says.

    Raises
    ------
    Malformed
        It is none, or not that of a file of so many bytes.
    """
    start = len(header)
    if start < 8 or start % ALIGNED or int.from_bytes(header[:8], "little") != start - 8:
        raise Malformed(f"have a header that ends at a multiple of {ALIGNED}", header[:8].hex())
    fields = Fields(parse(header[8:]), "the header")
    places: dict[str, Part] = {}
    begin = 0
    for name, value in fields.rest().items():
        places[name] = part = _part(Fields(value, f"{name[:80]!r} of the header"), start, begin)
        begin += part.nbytes
    if start + begin != file_bytes:
        raise Malformed(f"hold the {start + begin} bytes of its tensors", file_bytes)
    return places


def _part(fields: Fields, start: int, begin: int) -> Part:
    dtype = DTYPES.get(fields.text("dtype", r"[A-Z0-9_]{1,16}"))
    if dtype is None:
        raise Malformed("have a type of docs/format.md", "another")
    shape = tuple(integer(size, "a size") for size in fields.items("shape", MOST_DIMENSIONS))
    part = Part(dtype, shape, start + begin)
    offsets = fields.items("data_offsets", 2)
    fields.end()
    if part.nbytes >= 2**62 or cast("list[int]", offsets) != [begin, begin + part.nbytes]:
        raise Malformed("have tensors side by side", f"{offsets}, not from {begin} to {begin + part.nbytes}")
    return part
