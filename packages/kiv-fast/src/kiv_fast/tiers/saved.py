"""Restored pages that stay in the files of what was saved: parts of them are read there, in whole blocks."""

from __future__ import annotations

import numpy as np
from kiv_reference.snapshot import ColdPages
from numpy.typing import NDArray

from ..memory.ledger import Counters
from ..shape import Shape


class SavedPages:
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
        found = np.empty((len(blocks), tokens, width), np.uint8)
        self._read(values, blocks, np.arange(len(blocks)) * block_bytes, found.reshape(-1), block_bytes)
        out[at] = found[which, parts % tokens]

    def _read(
        self, values: bool, blocks: NDArray[np.int64], at: NDArray[np.int64], out: NDArray[np.uint8], nbytes: int
    ) -> None:
        self._source.read(values, blocks, at, out)
        self._counters.saved_bytes_read += len(blocks) * nbytes
