"""Restored pages that stay in the files of what was saved: parts of them are read there, in whole blocks."""

from __future__ import annotations

import numpy as np
from kiv_reference.snapshot import ColdPages
from numpy.typing import NDArray

from ..interrupts import asked
from ..memory.ledger import Counters
from ..shape import Shape

AT_ONCE = 1 << 20
"""Bytes of blocks that are held at a time, beside the rows that are copied out of them."""


class SavedParts:
    """Reads keys or values of a source by page and part: a token of a head, or all that a head has in a page."""

    def __init__(self, source: ColdPages, shape: Shape, page_tokens: int, counters: Counters) -> None:
        self._source, self._counters = source, counters
        self._page_numbers = shape.heads * page_tokens
        self._widths = shape.key_width * shape.dtype.itemsize, shape.value_width * shape.dtype.itemsize

    def read(
        self,
        values: bool,
        pages: NDArray[np.int64],
        parts: NDArray[np.int64],
        size: int,
        out: NDArray[np.uint8],
        at: NDArray[np.int64],
    ) -> None:
        """Copy parts of `size` bytes, numbered from the beginning of each page, to rows ``at [K]`` of `out`.

        Raises
        ------
        KIVCorruptError, KIVStorageError
            As `ColdPages.read`.
        """
        width, tokens = self._widths[values], self._source.block_tokens
        block_bytes, of_page = width * tokens, self._page_numbers // tokens
        if size % block_bytes == 0:
            each = size // block_bytes
            blocks = (pages * of_page + parts * each)[:, None] + np.arange(each)
            begin = at[:, None] * size + np.arange(each) * block_bytes
            self._read(values, blocks.ravel(), begin.ravel(), out.reshape(-1), block_bytes)
            return
        blocks, which = np.unique(pages * of_page + parts // tokens, return_inverse=True)
        order, step = np.argsort(which, kind="stable"), max(1, AT_ONCE // block_bytes)
        found = np.empty((min(step, len(blocks)), tokens, width), np.uint8)
        for start in range(0, len(blocks), step):
            some = blocks[start : start + step]
            self._read(values, some, np.arange(len(some)) * block_bytes, found.reshape(-1), block_bytes)
            mine = order[slice(*np.searchsorted(which, (start, start + len(some)), sorter=order))]
            out[at[mine]] = found[which[mine] - start, parts[mine] % tokens]

    def _read(
        self, values: bool, blocks: NDArray[np.int64], at: NDArray[np.int64], out: NDArray[np.uint8], nbytes: int
    ) -> None:
        asked(self._source.read, values, blocks, at, out)
        self._counters.saved_bytes_read += len(blocks) * nbytes
