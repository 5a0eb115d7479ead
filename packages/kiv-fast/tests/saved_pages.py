"""Saved pages in memory: what a store takes from files, with reads that are counted and may fail."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from kiv_reference.errors import KIVCorruptError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from kiv_reference import LayerStore
    from kiv_reference.snapshot import Snapshot
    from numpy.typing import NDArray


class SavedPages:
    """A copy of the pages of a snapshot, read in blocks of a few tokens (`ColdPages`).

    Attributes
    ----------
    reads : list of (bool, tuple of int)
        Of each read whether it was of values, and its blocks.
    broken : set of int
        Blocks that are not what was saved.
    """

    lasting = True

    def __init__(self, snapshot: Snapshot, block_tokens: int = 2, indexed: bool = True) -> None:
        self.block_tokens, self._count = block_tokens, len(snapshot.cold)
        whole = [snapshot.read_pages(values, 0, self._count) for values in (False, True)]
        self._blocks = [part.view(torch.uint8).reshape(-1, block_tokens * part.shape[3] * part.element_size()).numpy()
                        for part in whole]  # fmt: skip
        self._index = snapshot.cold.index(0, self._count) if indexed else None
        self.reads: list[tuple[bool, tuple[int, ...]]] = []
        self.broken: set[int] = set()

    def __len__(self) -> int:
        """Count the pages."""
        return self._count

    def read(self, values: bool, blocks: NDArray[np.int64], at: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Copy blocks, some of them before it fails."""
        self.reads.append((values, tuple(blocks.tolist())))
        for block, begin in zip(blocks.tolist(), at.tolist(), strict=True):
            row = self._blocks[values][block]
            if block in self.broken:
                out[begin : begin + len(row)] = 255
                raise KIVCorruptError(f"block {block}")
            out[begin : begin + len(row)] = row

    def index(self, start: int, stop: int) -> Mapping[str, torch.Tensor] | None:
        """Return the index of pages."""
        return None if self._index is None else {name: part[start:stop] for name, part in self._index.items()}

    @property
    def blocks_read(self) -> int:
        """How many blocks were read, again and again."""
        return sum(len(blocks) for _, blocks in self.reads)


def saved(store: LayerStore, block_tokens: int = 2, indexed: bool = True) -> tuple[Snapshot, SavedPages]:
    """Return the state of a store as if it lay in files, and its pages."""
    snapshot = store.snapshot()
    assert snapshot is not None, "a store with tokens"
    pages = SavedPages(snapshot, block_tokens, indexed)
    return replace(snapshot, cold=pages), pages
