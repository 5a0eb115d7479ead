"""Reading pages that are partly in RAM and partly on disk.

Keys come from RAM, from the cache, or page by page from a file; values of pages on disk are read row by row.
"""

from __future__ import annotations

import torch

from .ledger import Account, Counters
from .residence import Residence
from .spill import Segments
from .staging import Staging, joined, passing
from .transfer import Transfer
from .tuning import Tuning
from .validate import Shape


class TieredArena(Residence):
    """An `Arena` under a RAM budget; parameters as for `Residence`. The host must know which pages a step reads."""

    def __init__(
        self,
        shape: Shape,
        page_tokens: int,
        ledger: Account,
        counters: Counters,
        segments: Segments,
        transfer: Transfer,
        tuning: Tuning,
        staging: Staging,
    ) -> None:
        super().__init__(shape, page_tokens, ledger, counters, segments, tuning, staging)
        self._transfer = transfer

    def keys(self, ids: torch.Tensor) -> torch.Tensor:
        """Gather candidate keys from RAM, the cache and the disk."""
        heads, count = ids.shape
        pages: list[list[int]] = self._transfer.fetch(ids).tolist()
        units = [page * heads + head for head, row in enumerate(pages) for page in row]
        width = self._page_tokens * self._shape.key_width
        rows = self._gather_keys(units, *self._staging.rows("keys", len(units), width, self._shape.dtype))
        return self._transfer.upload(rows.view(heads, count * self._page_tokens, self._shape.key_width))

    def _gather_keys(
        self, units: list[int], rows: torch.Tensor, buffer: memoryview, cache: bool = True
    ) -> torch.Tensor:
        """Read keys into `rows`, which are the bytes of `buffer`."""
        heads = self._shape.heads
        slots, value_slots = self._slots(units)
        at = torch.tensor([max(slot, 0) for slot in slots], dtype=torch.int64, device="cpu")
        torch.index_select(self._key.tensor, 0, at, out=rows)
        missing = [at for at, slot in enumerate(slots) if slot < 0]
        size = self._key.record_bytes
        where: list[tuple[int, int, int]] = []
        for at in missing:
            handle, offset = self._segments.where(self._on_disk(value_slots[at]), value=False)
            where.append((handle, offset + units[at] % heads * size, at * size))
        self._segments.read(joined(where, size, buffer))
        if cache:
            with self._ledger.changing():
                self.touch(units, missing, rows)
        return rows

    def values(self, ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """Gather selected value rows from RAM and, row by row, from the disk."""
        heads, count = ids.shape
        size, width = self._page_tokens, self._shape.value_width
        picked = self._transfer.fetch(torch.stack([ids, offsets]))
        slots: list[int] = self._value_slot.array[picked[0].flatten().numpy()].tolist()
        within: list[int] = picked[1].flatten().tolist()
        rows, buffer = self._staging.rows("values", len(slots), width, self._shape.dtype)
        row_bytes = width * self._shape.dtype.itemsize
        picks: list[int] = []
        where: list[tuple[int, int, int]] = []
        for at, (slot, offset) in enumerate(zip(slots, within, strict=True)):
            token = at // count * size + offset  # head and token within the page
            picks.append(0 if slot < 0 else slot * heads * size + token)
            if slot < 0:
                handle, start = self._segments.where(self._on_disk(slot), value=True)
                where.append((handle, start + token * row_bytes, at * row_bytes))
        at = torch.tensor(picks, dtype=torch.int64, device="cpu")
        torch.index_select(self._value.tensor.view(-1, width), 0, at, out=rows)
        self._segments.read(joined(where, row_bytes, buffer))
        return self._transfer.upload(rows.view(heads, count, width))

    def tile(self, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Whole pages of all heads, in order."""
        heads, size, dtype = self._shape.heads, self._page_tokens, self._shape.dtype
        units = [page * heads + head for head in range(heads) for page in ids]
        key = self._gather_keys(units, *passing(len(units), size * self._shape.key_width, dtype), cache=False)
        rows, buffer = passing(len(units), size * self._shape.value_width, dtype)
        unit = size * self._shape.value_width * self._shape.dtype.itemsize
        picks: list[int] = []
        where: list[tuple[int, int, int]] = []
        slots: list[int] = self._value_slot.array[ids].tolist()
        for head in range(heads):
            for number, slot in enumerate(slots):
                picks.append(0 if slot < 0 else slot * heads + head)
                if slot < 0:
                    handle, start = self._segments.where(self._on_disk(slot), value=True)
                    where.append((handle, start + head * unit, (head * len(ids) + number) * unit))
        flat = self._value.tensor.view(-1, size * self._shape.value_width)
        torch.index_select(flat, 0, torch.tensor(picks, dtype=torch.int64, device="cpu"), out=rows)
        self._segments.read(joined(where, unit, buffer))
        return key.view(heads, -1, self._shape.key_width), rows.view(heads, -1, self._shape.value_width)
