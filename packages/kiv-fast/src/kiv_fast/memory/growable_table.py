"""Tables of equal records that grow without being copied.

On a CPU a table is a private mapping of far more addresses than it will use: the system commits memory only
as records are written, so growth is free and one `index_select` reaches every record. On another device, or where the
system refuses such a mapping, a table is copied to grow.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import math
import mmap
import platform
import sys
import weakref
from collections.abc import Collection
from typing import Any

import torch

from .pinning import Region, SlabPinning

RESERVE_BYTES = 1 << 34
"""Addresses, not memory, reserved for one table."""

HUGE_BYTES = 1 << 21
"""Of a large memory page."""

SMALL_BYTES = 16 * HUGE_BYTES
"""A table has small memory pages up to here: a large one may be nearly empty, one part in 16 of what is held."""

FIRST_RECORDS = 16
"""Capacity of a table that must be copied to grow: by an eighth each time."""

# Not every Python has a name for the third flag. Without it the addresses count as memory, and a process with more of
# them than memory cannot fork.
_LINUX_NORESERVE = 0x4000 if platform.machine() in ("x86_64", "aarch64") and sys.platform == "linux" else 0
_NAMES = {"MAP_PRIVATE": 0, "MAP_ANONYMOUS": 0, "MAP_NORESERVE": _LINUX_NORESERVE}
_FLAGS = sum(getattr(mmap, name, value) for name, value in _NAMES.items())


def reserve(count: int, dtype: torch.dtype, huge: bool = False) -> tuple[torch.Tensor, mmap.mmap] | None:
    """Map `count` zeros that take memory only once written; returns them and their mapping, or None if refused.

    Memory pages are small, whatever the system does by itself, unless `huge` asks for large ones: for what is written
    whole.
    """
    if sys.platform == "win32":  # there the addresses would count as memory
        return None
    try:
        mapping = mmap.mmap(-1, count * dtype.itemsize, flags=_FLAGS)
    except OSError as error:  # limits on address space, strict overcommit: the caller copies instead
        if error.errno is None:  # not the system's, but what a signal's handler raised
            raise
        return None
    _prefer(mapping, huge, 0, len(mapping))
    return torch.frombuffer(mapping, dtype=dtype), mapping


def _prefer(mapping: mmap.mmap, huge: bool, start: int, nbytes: int) -> None:
    """Ask for large or small memory pages where memory comes from now on."""
    with contextlib.suppress(OSError):  # a kernel without large ones
        _advise(mapping, "MADV_HUGEPAGE" if huge else "MADV_NOHUGEPAGE", start, nbytes)


def _advise(mapping: Any, advice: str, start: int, nbytes: int) -> None:
    """Advise the system on memory, where it knows the advice."""
    if (number := getattr(mmap, advice, None)) is not None:
        mapping.madvise(number, start, nbytes)


class Table:
    """Records of one shape, numbered from 0.

    Parameters
    ----------
    shape : of one record
    dtype, device : of all
    pinning : SlabPinning, optional
        What becomes of the records in use, if they are a mapping.
    huge : bool
        Whether to ask for large memory pages as it grows, since gathers from a big table wait for the address tables
        of small ones: for tables that hardly ever forget a record, and never write above one that they have forgotten.

    Attributes
    ----------
    tensor, rows : Tensor
        All records there is room for, and the same memory in rows of a record's last dimension.
    mapped : (int, Tensor), or None
        `rows` as a device sees them, and at which address, once it was asked for (`Gather`).
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        pinning: SlabPinning | None = None,
        huge: bool = False,
    ) -> None:
        self._shape, self._used = shape, 0
        self._live = bytearray()  # a flag for each record in use, of those that are ever forgotten
        self.record_bytes = math.prod(shape) * dtype.itemsize
        self._mapping: mmap.mmap | None = None
        self.mapped: tuple[int, torch.Tensor] | None = None
        self._pinning, self._region = pinning, Region(0, 0)
        self._huge = 0  # where large memory pages were not asked for yet; 0 if they never are
        reserved = None
        if device.type == "cpu":
            limit = max(FIRST_RECORDS, RESERVE_BYTES // self.record_bytes)
            reserved = reserve(limit * math.prod(shape), dtype)
        if reserved is not None:
            flat, self._mapping = reserved
            self._set(flat.view(-1, *shape))
            self._region = Region(flat.data_ptr(), flat.numel() * flat.element_size())
            if huge:
                self._huge = SMALL_BYTES - flat.data_ptr() % HUGE_BYTES
            if pinning is not None:  # before the mapping goes: nobody else knows what is registered there
                weakref.finalize(self, pinning.release, self._region)
        else:
            self._set(torch.empty(0, *shape, dtype=dtype, device=device))

    def _set(self, tensor: torch.Tensor) -> None:
        self.tensor, self.rows = tensor, tensor.view(-1, tensor.shape[-1])

    @property
    def pinned(self) -> bool:
        """Whether all records in use are registered."""
        return self._region.pinned >= max(1, self._used * self.record_bytes)

    @property
    def seen(self) -> int:
        """The address at which a device sees the first record, if it is registered."""
        return self._region.seen

    def pieces(self, records: list[int]) -> list[torch.Tensor]:
        """View records in flat pieces, in order; none reaches over the end of a pinned slab, which no copy may do."""
        flat, size = self.tensor.view(-1), math.prod(self._shape)
        ends = [end // flat.element_size() for end in itertools.accumulate(self._region.slabs)]
        found: list[torch.Tensor] = []
        first = 0
        for last, record in enumerate(records):
            if last + 1 < len(records) and records[last + 1] == record + 1:
                continue
            start, stop = records[first] * size, (record + 1) * size
            inside = ends[bisect.bisect_right(ends, start) : bisect.bisect_left(ends, stop)]
            found += [flat[a:b] for a, b in itertools.pairwise([start, *inside, stop])]
            first = last + 1
        return found

    def ensure(self, records: int) -> None:
        """Make room for n records."""
        self._used = max(self._used, records)
        capacity = self.tensor.shape[0]
        if records <= capacity:
            self._enlarge(records * self.record_bytes)
            if self._pinning is not None:
                self._pinning.cover(self._region, records * self.record_bytes)
            return
        grown = torch.empty(
            max(records, capacity + capacity // 8, FIRST_RECORDS),
            *self._shape,
            dtype=self.tensor.dtype,
            device=self.tensor.device,
        )
        grown[:capacity] = self.tensor
        if self._pinning is not None:
            self._pinning.release(self._region)
        self._region.nbytes = 0
        self._set(grown)
        self._mapping = self.mapped = None

    def _enlarge(self, nbytes: int) -> None:
        """Ask for large memory pages for the first n bytes, but for those in small ones."""
        if self._mapping is not None and 0 < self._huge < nbytes:
            more = min(-(-(nbytes - self._huge) // HUGE_BYTES) * HUGE_BYTES, self._region.nbytes - self._huge)
            _prefer(self._mapping, True, self._huge, more)
            self._huge += more

    def use(self, records: Collection[int]) -> None:
        """Make room for these records, which are about to be written."""
        top = max(records) + 1
        self.ensure(top)
        self._live.extend(bytes(max(0, top - len(self._live))))
        for record in records:
            self._live[record] = 1

    def put(self, records: list[int], rows: torch.Tensor) -> None:
        """Write records ``[n, *shape]``, given by their numbers."""
        self.use(records)
        if records[-1] - records[0] == len(records) - 1:
            self.tensor[records[0] : records[-1] + 1] = rows
        else:
            self.tensor[records] = rows.to(self.tensor)

    def forget(self, records: Collection[int]) -> None:
        """Return the memory of records that are no longer needed: every memory page without another, if not pinned."""
        live, given, done = self._live, set(records), -1
        for record in given:
            if record < len(live):
                live[record] = 0
        if not any(live[-1:]):
            del live[len(live.rstrip(b"\0")) :]
        if self._mapping is None:
            return
        for record in sorted(given):
            if record > done:
                done = record
                while done + 1 in given:
                    done += 1
                self._give_back(self._mapping, record, done)

    def _give_back(self, mapping: mmap.mmap, first: int, last: int) -> None:
        """Return the memory of a run of records, and of as many unused ones beside it as share a memory page."""
        live, size, record = self._live, mmap.PAGESIZE, self.record_bytes
        least, most = first * record // size * size, -(-(last + 1) * record // size) * size
        while first * record > least and not any(live[first - 1 : first]):
            first -= 1
        while (last + 1) * record < most and not any(live[last + 1 : last + 2]):
            last += 1
        stop = (last + 1) * record
        if last + 1 >= len(live):  # nothing lies above, but what came with a large memory page
            stop = min(stop + HUGE_BYTES, self._region.nbytes)
        start = -(-max(first * record, self._region.pinned) // size) * size
        if stop // size * size <= start:
            return
        _advise(mapping, "MADV_DONTNEED", start, stop // size * size - start)
        base = self._region.address
        large = max((base + start) // HUGE_BYTES * HUGE_BYTES - base, SMALL_BYTES - base % HUGE_BYTES)
        if large < self._huge:  # or the system might fill up what is left of a large page, in its own time
            _prefer(mapping, False, large, self._huge - large)
            self._huge = large
