"""Which tensors a context has, and what they must look like: those of pages, and those beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from .checksums import block_tokens
from .faults import Malformed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kiv_reference.snapshot import Snapshot

INDEX_NAME = r"[a-z]{1,16}"
SIDES = ("key", "value")
REST = ("pages", "recent.key", "recent.value", "sampled", "valid")
"""Tensors of a layer beside its pages; "valid" only where something is not."""


class Geometry(NamedTuple):
    """What the pages of a layer are like, and how many there are."""

    dtype: torch.dtype
    batch: int
    heads: int
    page_tokens: int
    key_width: int
    value_width: int
    pages: int
    finite: bool

    @classmethod
    def of(cls, snapshot: Snapshot) -> Geometry:
        """Return that of a snapshot."""
        shape, pages = snapshot.shape, len(snapshot.cold)
        sizes = snapshot.config.page_tokens, shape.key_width, shape.value_width
        return cls(shape.dtype, shape.batch, shape.heads, *sizes, pages, snapshot.finite)

    @property
    def widths(self) -> tuple[int, int]:
        """D and DV."""
        return self.key_width, self.value_width

    @property
    def page_bytes(self) -> int:
        """Bytes of the keys and values of a page."""
        return self.heads * self.page_tokens * sum(self.widths) * self.dtype.itemsize

    @property
    def blocks(self) -> int:
        """Blocks of a head's page."""
        return self.page_tokens // block_tokens(self.page_tokens)

    def block_bytes(self, values: int) -> int:
        """Count the bytes of a block of keys, or of values."""
        return block_tokens(self.page_tokens) * self.widths[values] * self.dtype.itemsize

    def like(self, other: Geometry) -> bool:
        """Tell whether pages of both may lie side by side."""
        return self[:1] + self[2:6] == other[:1] + other[2:6]

    def within(self, start: int, stop: int) -> int:
        """Count its pages ``[start, stop)``, of those that it has."""
        return max(0, min(stop, self.pages) - start)


Tensors = dict[str, tuple[torch.dtype, "Sequence[int]"]]


def page_tensors(layer: int, geometry: Geometry, pages: int) -> Tensors:
    """Return types and shapes of what a segment has of so many pages of a layer, but for the index."""
    found: Tensors = {}
    heads, size = geometry.heads, geometry.page_tokens
    for side, width in zip(SIDES, geometry.widths, strict=True):
        found[f"{layer}.{side}"] = geometry.dtype, (pages, heads, size, width)
        found[f"{layer}.{side}.sums"] = torch.int64, (pages, heads, geometry.blocks)
    return found


def rest_tensors(snapshot: Snapshot) -> dict[str, torch.Tensor]:
    """Return the tensors beside pages of a snapshot, by names without the layer's number."""
    found = {
        "pages": torch.from_numpy(snapshot.pages.astype("int32")),
        "recent.key": snapshot.key,
        "recent.value": snapshot.value,
        "sampled": snapshot.sampled,
    }
    return found if snapshot.valid is None else {**found, "valid": snapshot.valid}


def check_page_segment(
    found: Mapping[str, tuple[torch.dtype, Sequence[int]]], layers: Mapping[int, Geometry], pages: tuple[int, int]
) -> dict[int, int]:
    """Return how many pages of each layer a segment holds, of whose tensors types and shapes are given.

    Raises
    ------
    Malformed
        They are not those of pages of these layers, or not of all that should be there.
    """
    held: dict[int, int] = {}
    known: set[str] = set()
    for layer, geometry in layers.items():
        needed = geometry.within(*pages)
        if not needed and f"{layer}.key" not in found:
            continue
        held[layer] = count = found[f"{layer}.key"][1][0] if found.get(f"{layer}.key", (None, ()))[1] else 0
        if count < max(needed, 1):
            raise Malformed(f"hold {needed} pages of layer {layer}", count)
        for name, expected in page_tensors(layer, geometry, count).items():
            if name not in found or (found[name][0], tuple(found[name][1])) != expected:
                raise Malformed(f"have {name} of {expected[0]} {list(expected[1])}", found.get(name))
            known.add(name)
    for name in set(found) - known:
        layer, _, part = name.partition(".index.")
        if not (part.isalpha() and part.islower() and layer in map(str, held)):
            raise Malformed("hold pages and their index alone", name)
        if tuple(found[name][1])[:1] != (held[int(layer)],):
            raise Malformed(f"have {name} of each page", found[name][1])
    return held
