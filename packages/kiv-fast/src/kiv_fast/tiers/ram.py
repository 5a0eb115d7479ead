"""Keys and values of cold pages in host memory, by page id.

What an arena returns does not depend on the place (SPEC 10.1). What a step picks, `keys` and `values`, goes from the
device to the device: tokens `offsets`, counted head by head, in pages `ids`, both int64 ``[n, K]``. `tile` stays in
RAM.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from kiv_reference.report import TierBytes
from numpy.typing import NDArray

from ..device.gather import Reach
from ..memory.growable_table import Table
from ..memory.ledger import Account
from ..memory.pinning import Pinning
from ..memory.scratch import Scratch
from ..shape import Shape, aligned


class RamArena:
    """All pages in RAM, pinned where a device reads them; a page's place is its id."""

    def __init__(
        self, shape: Shape, page_tokens: int, ledger: Account, scratch: Scratch, pinning: Pinning, reach: Reach
    ) -> None:
        host = torch.device("cpu")
        self._shape, self._page_tokens, self._ledger, self._scratch = shape, page_tokens, ledger, scratch
        self._reach = reach
        self._key = Table((shape.heads, page_tokens, shape.key_width), shape.dtype, host, pinning, huge=True)
        self._value = Table((shape.heads, page_tokens, shape.value_width), shape.dtype, host, pinning, huge=True)
        self._promised = 0

    @property
    def page_bytes(self) -> int:
        """Bytes of one page."""
        return self._shape.token_bytes * self._page_tokens

    def promise(self, pages: int) -> TierBytes:
        """Book RAM for pages to come."""
        self._ledger.take(ram=(pages - self._promised) * self.page_bytes)
        self._promised = pages
        return TierBytes(0, pages * self.page_bytes, 0)

    def give_way(self, nbytes: int) -> None:
        """Nothing here can live elsewhere."""

    def write(self, ids: list[int], key: torch.Tensor, value: torch.Tensor) -> None:
        """Copy in pages ``[n, H, P, D]`` and ``[n, H, P, DV]``."""
        n = len(ids)
        if n > self._promised:
            self.promise(n)
        for table, rows in ((self._key, key), (self._value, value)):
            table.use(ids)
            if ids[-1] - ids[0] == n - 1:
                table.tensor[ids[0] : ids[-1] + 1] = rows
            else:
                table.tensor[ids] = rows.to(table.tensor)
        self._promised -= n

    def free(self, ids: list[int]) -> None:
        """Return the memory of pages."""
        self._key.forget(ids)
        self._value.forget(ids)
        self._ledger.give(ram=len(ids) * self.page_bytes)

    def keys(self, ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """Gather keys ``[n, K, D]``."""
        return self._rows("keys", self._key, self._shape.key_width, ids, offsets)

    def values(self, ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """Gather values ``[n, K, DV]``."""
        return self._rows("values", self._value, self._shape.value_width, ids, offsets)

    def _rows(self, name: str, table: Table, width: int, ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        rows = (ids * (self._shape.heads * self._page_tokens) + offsets).view(-1)
        out = self._scratch.take(name, (rows.numel(), width), self._shape.dtype, ids.device)
        return self._reach.rows(table, width, rows, out).view(*ids.shape, width)

    def table(self, values: bool) -> torch.Tensor | None:
        """All keys or values, ``[pages, H, P, D]`` or ``[pages, H, P, DV]``, where the arithmetic can read them."""
        return (self._value if values else self._key).tensor if self._reach.in_place else None

    def tile(self, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Whole pages, keys and values ``[H, n * P, D]``; a view where one head's pages lie side by side."""
        heads, first, n = self._shape.heads, ids[0], len(ids)
        if ids[-1] - first == n - 1 and all(b == a + 1 for a, b in itertools.pairwise(ids)):
            key, value = self._key.tensor[first : first + n], self._value.tensor[first : first + n]
        else:
            at = torch.tensor(ids, device="cpu")
            key, value = self._key.tensor.index_select(0, at), self._value.tensor.index_select(0, at)
        return (
            aligned(key.transpose(0, 1).reshape(heads, -1, self._shape.key_width)),
            aligned(value.transpose(0, 1).reshape(heads, -1, self._shape.value_width)),
        )

    def pages_on_disk(self, ids: NDArray[np.int32]) -> int:
        """None is."""
        return 0
