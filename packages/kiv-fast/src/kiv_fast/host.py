"""Tables of equal records that grow without being copied.

On a CPU a table is a private mapping of far more addresses than it will use: the system commits memory only
as records are written, so growth is free and one `index_select` reaches every record. On another device, or where the
system refuses such a mapping, a table doubles.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import platform
import sys
import weakref
from collections.abc import Collection

import torch

from .pinning import NullPinning, Pinning, Region

RESERVE_BYTES = 1 << 34
"""Addresses, not memory, reserved for one table."""

HUGE_BYTES = 1 << 21
"""Of a large memory page."""

FIRST_RECORDS = 64
"""Capacity of a table that must grow by doubling."""

# Not every Python has a name for the third flag. Without it the addresses count as memory, and a process with more of
# them than memory cannot fork.
_LINUX_NORESERVE = 0x4000 if platform.machine() in ("x86_64", "aarch64") and sys.platform == "linux" else 0
_NAMES = {"MAP_PRIVATE": 0, "MAP_ANONYMOUS": 0, "MAP_NORESERVE": _LINUX_NORESERVE}
_FLAGS = sum(getattr(mmap, name, value) for name, value in _NAMES.items())


def reserve(count: int, dtype: torch.dtype, huge: bool = False) -> tuple[torch.Tensor, mmap.mmap] | None:
    """`count` zeros of `dtype` that take memory only once written, and their mapping; None where that is refused.

    `huge` asks for large memory pages: gathers from a big table wait for the address tables of small ones.
    """
    if not _FLAGS:
        return None
    try:
        mapping = mmap.mmap(-1, count * dtype.itemsize, flags=_FLAGS)
    except OSError:  # limits on address space, strict overcommit: the caller doubles instead
        return None
    if huge and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            mapping.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(mapping, dtype=dtype), mapping


class Table:
    """Records of one shape, numbered from 0.

    Parameters
    ----------
    shape : of one record
    dtype, device : of all
    pinning : Pinning, optional
        What becomes of the records in use, if they are a mapping.
    huge : bool
        Whether to ask for large memory pages: for tables that hardly ever forget a record.

    Attributes
    ----------
    mapped : Tensor, or None
        The same memory as a device sees it, once it was asked for (`reach`).
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        pinning: Pinning | None = None,
        huge: bool = False,
    ) -> None:
        self._shape, self._used = shape, 0
        self._forgotten: set[int] = set()
        self.record_bytes = math.prod(shape) * dtype.itemsize
        self._mapping: mmap.mmap | None = None
        self.mapped: torch.Tensor | None = None
        self._pinning, self._region = pinning or NullPinning(), Region(0, 0)
        reserved = None
        if device.type == "cpu":
            limit = max(FIRST_RECORDS, RESERVE_BYTES // self.record_bytes)
            reserved = reserve(limit * math.prod(shape), dtype, huge)
        if reserved is not None:
            flat, self._mapping = reserved
            self.tensor = flat.view(-1, *shape)
            self._region = Region(flat.data_ptr(), flat.numel() * flat.element_size())
            # Before the mapping goes: nobody else knows what is registered there.
            weakref.finalize(self, self._pinning.release, self._region)
        else:
            self.tensor = torch.empty(0, *shape, dtype=dtype, device=device)

    @property
    def mapping(self) -> mmap.mmap | None:
        """The bytes behind the table, where it is a mapping."""
        return self._mapping

    @property
    def pinned(self) -> bool:
        """Whether all records in use are registered."""
        return self._region.pinned >= max(1, self._used * self.record_bytes)

    def ensure(self, records: int) -> None:
        """Make room for so many records."""
        self._used = max(self._used, records)
        capacity = self.tensor.shape[0]
        if records <= capacity:
            self._pinning.cover(self._region, records * self.record_bytes)
            return
        grown = torch.empty(
            max(records, 2 * capacity, FIRST_RECORDS), *self._shape, dtype=self.tensor.dtype, device=self.tensor.device
        )
        grown[:capacity] = self.tensor
        self._pinning.release(self._region)
        self._region.nbytes = 0
        self.tensor, self._mapping, self.mapped = grown, None, None

    def use(self, records: Collection[int]) -> None:
        """Make room for these records, which are about to be written."""
        self._forgotten.difference_update(records)
        self.ensure(max(records) + 1)

    def forget(self, records: Collection[int]) -> None:
        """Return the memory of records that are no longer needed: every memory page without another, if not pinned."""
        if self._mapping is None:
            return
        self._forgotten.update(records)
        given, size, done = set(records), mmap.PAGESIZE, -1
        for record in sorted(given):
            if record <= done:
                continue
            done = record
            while done + 1 in given:
                done += 1
            first, last = record, done  # and as many beside them as share a memory page
            while (
                first * self.record_bytes > record * self.record_bytes // size * size and first - 1 in self._forgotten
            ):
                first -= 1
            most = -(-(done + 1) * self.record_bytes // size) * size
            while (last + 1) * self.record_bytes < most and last + 1 in self._forgotten:
                last += 1
            stop = (last + 1) * self.record_bytes
            if last + 1 >= self._used:  # nothing lies above, but what came with a large memory page
                stop = min(stop + HUGE_BYTES, self._region.nbytes)
            start = -(-max(first * self.record_bytes, self._region.pinned) // size) * size
            nbytes = stop // size * size - start
            if nbytes > 0:
                self._mapping.madvise(mmap.MADV_DONTNEED, start, nbytes)
