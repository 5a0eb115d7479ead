"""Restored pages that are read as they are needed: which of their blocks are not in the tables yet.

What is read is written to where it stays, so that from then on it is like any other page: results do not depend on when
that was. A block that could not be read stays absent.
"""

from __future__ import annotations

import numpy as np
import torch
from kiv_reference.snapshot import ColdPages
from numpy.typing import NDArray

from ..interrupts import asked
from ..memory.growable_table import Table
from ..memory.ledger import Counters


class Absent:
    """Pages whose ids are their numbers in `source`, and tables of keys and of values that have room for them.

    Attributes
    ----------
    count : int
        Blocks that are still to be read.
    """

    def __init__(self, source: ColdPages, tables: tuple[Table, Table], counters: Counters) -> None:
        self._source, self._tables, self._counters = source, tables, counters
        self._heads, tokens = tables[0].tensor.shape[1:3]
        self._of_page = self._heads * tokens // source.block_tokens
        self._flags = [np.ones((len(source), self._of_page), bool) for _ in tables]
        self.count = sum(flags.size for flags in self._flags)

    def bring_tokens(self, values: bool, places: torch.Tensor) -> None:
        """Read what is absent of rows, by their places in the tables, int64 in RAM."""
        blocks = np.unique(places.numpy().ravel() // self._source.block_tokens)
        self._bring(values, blocks)

    def bring_parts(self, values: bool, pages: NDArray[np.int64], heads: NDArray[np.int64]) -> None:
        """Read what is absent of heads ``[K]`` in pages ``[K]``, none of them twice."""
        of_head = self._of_page // self._heads
        first = pages * self._of_page + heads * of_head
        self._bring(values, np.sort(first[:, None] + np.arange(of_head), axis=None))

    def _bring(self, values: bool, blocks: NDArray[np.int64]) -> None:
        flags, table = self._flags[values].ravel(), self._tables[values]
        blocks = blocks[blocks < len(flags)]  # pages that came later are there
        blocks = blocks[flags[blocks]]
        if not len(blocks):
            return
        nbytes = table.record_bytes // self._of_page
        whole = table.tensor[: len(self._source)].view(-1).view(torch.uint8).numpy()
        asked(self._source.read, values, blocks, blocks * nbytes, whole)
        self._counters.saved_bytes_read += len(blocks) * nbytes
        flags[blocks] = False  # before it counts: whatever comes between, no block is taken as read
        self.count -= len(blocks)

    def forget(self, pages: list[int]) -> None:
        """Forget pages: others may get their ids."""
        gone = [page for page in pages if page < len(self._source)]
        for flags in self._flags:
            self.count -= int(np.count_nonzero(flags[gone]))
            flags[gone] = False
