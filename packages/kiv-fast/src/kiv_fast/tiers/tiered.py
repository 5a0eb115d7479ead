"""Reading pages that are partly in RAM and partly on disk: rows of the latter one by one, joined where they can be."""

from __future__ import annotations

import torch

from ..device.transfer import Transfer
from ..memory.growable_table import Table
from ..memory.ledger import Account
from ..shape import Shape
from .ram import RamArena
from .residency import Residence
from .segments import Segments
from .staging import Staging, joined, passing


class TieredArena(Residence):
    """An arena under a RAM budget; parameters as for `Residence`. The host must know which pages a step reads."""

    def __init__(
        self,
        shape: Shape,
        page_tokens: int,
        ledger: Account,
        segments: Segments,
        staging: Staging,
        transfer: Transfer,
    ) -> None:
        super().__init__(shape, page_tokens, ledger, segments, staging)
        self._transfer = transfer

    def keys(self, ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """Gather keys ``[n, K, D]``."""
        return self._rows("keys", self._key, self._shape.key_width, ids, offsets)

    def values(self, ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """Gather values ``[n, K, DV]``."""
        return self._rows("values", self._value, self._shape.value_width, ids, offsets)

    def _rows(self, name: str, table: Table, width: int, ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        pages, tokens = self._transfer.fetch(torch.stack([ids, offsets])).unbind()
        rows, buffer = self._staging.rows(name, ids.numel(), width, self._shape.dtype)
        self._read(table, width, pages.flatten(), tokens.flatten(), rows, buffer)
        return self._transfer.upload(rows.view(*ids.shape, width))

    def table(self, values: bool) -> torch.Tensor | None:
        """None: pages may be on disk."""
        return None

    def tile(self, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Whole pages of all heads, in order."""
        heads, size = self._shape.heads, self._page_tokens
        pages = torch.tensor(ids, dtype=torch.int64, device="cpu").repeat(heads)
        parts = torch.arange(heads, device="cpu").repeat_interleave(len(ids))
        tile: list[torch.Tensor] = []
        for table, width in ((self._key, self._shape.key_width), (self._value, self._shape.value_width)):
            rows, buffer = passing(pages.numel(), size * width, self._shape.dtype)
            self._read(table, size * width, pages, parts, rows, buffer)
            tile.append(rows.view(heads, -1, width))
        return tile[0], tile[1]

    def _read(
        self,
        table: Table,
        width: int,
        pages: torch.Tensor,
        parts: torch.Tensor,
        rows: torch.Tensor,
        buffer: memoryview,
    ) -> None:
        """Read parts of `width` numbers of pages, both int64 ``[K]``, into ``rows [K, width]``, bytes of `buffer`."""
        slots = torch.from_numpy(self._place.array)[pages].long()
        each, size = table.record_bytes // table.tensor.dtype.itemsize // width, width * self._shape.dtype.itemsize
        torch.index_select(table.tensor.view(-1, width), 0, slots.clamp(min=0) * each + parts, out=rows)
        where: list[tuple[int, int, int]] = []
        missing = (slots < 0).nonzero()[:, 0]
        for at, slot, part in zip(missing.tolist(), slots[missing].tolist(), parts[missing].tolist(), strict=True):
            handle, start = self._segments.where(self._on_disk(slot), value=table is self._value)
            where.append((handle, start + part * size, at * size))
        self._segments.read(joined(where, size, buffer))


Arena = RamArena | TieredArena
"""Where the keys and values of pages live."""
