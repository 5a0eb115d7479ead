"""Host memory that a device sees at other addresses: a file in memory, mapped once for the host and again for a device.

Whoever gives the device an address of the host, or one of a mapping that is gone, gets an error or NaN.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import TYPE_CHECKING, Any

import torch
from kiv_fast.memory.pinning import CudaRuntime
from simulated_device import OnDevice

if TYPE_CHECKING:
    from collections.abc import Iterator

MAP_FIXED = 0x10

PROTECTION, NOTHING = mmap.PROT_READ | mmap.PROT_WRITE, MAP_FIXED | mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS

libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)


def _address(mapping: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))


class FarRuntime(CudaRuntime):
    """Registers at most `limit` bytes; a device sees the slabs of a table side by side, or `apart` from each other."""

    def __init__(self, apart: bool, limit: int = 1 << 40) -> None:
        self.apart, self.limit = apart, limit
        self.slabs: dict[int, tuple[int, int]] = {}  # by their address: the device's, and how many bytes
        self.refused = self.mapped = 0
        self._tables: list[
            tuple[int, mmap.mmap, int, int]
        ] = []  # address and mapping, the file, and the device's address
        self._views: list[mmap.mmap] = []  # they stay, so that no address is used again

    def reserve(self, count: int, dtype: torch.dtype, huge: bool = False) -> tuple[torch.Tensor, mmap.mmap]:
        """Do what `growable_table.reserve` does, with memory that can be mapped again."""
        file = os.memfd_create("table")
        os.ftruncate(file, count * dtype.itemsize)
        mapping = mmap.mmap(file, count * dtype.itemsize)
        self._tables.append((_address(mapping), mapping, file, self._map(file, 0, len(mapping))))
        return torch.frombuffer(mapping, dtype=dtype), mapping

    def _map(self, file: int, offset: int, nbytes: int) -> int:
        self._views.append(mmap.mmap(file, nbytes, offset=offset))
        return _address(self._views[-1])

    def register(self, address: int, nbytes: int) -> None:
        if sum(size for _, size in self.slabs.values()) + nbytes > self.limit:
            self.refused += 1
            raise RuntimeError("out of lockable memory")
        start, held, file, whole = next(one for one in self._tables if one[0] <= address < one[0] + len(one[1]))
        offset, seen = address - start, whole + address - start
        if self.apart:  # behind the slab lies something else
            seen = self._map(file, offset, len(held) - offset)
            self._lose(seen + nbytes, len(held) - offset - nbytes)
        self.slabs[address] = seen, nbytes

    def unregister(self, address: int) -> None:
        seen, nbytes = self.slabs.pop(address)
        if self.apart:  # something else lies there from now on
            self._lose(seen, nbytes)
            ctypes.memset(seen, 0xFF, nbytes)

    @staticmethod
    def _lose(seen: int, nbytes: int) -> None:
        """Map other memory, of zeros, in place of what a device saw."""
        assert not nbytes or libc.mmap(seen, nbytes, PROTECTION, NOTHING, -1, 0) == seen

    def device_address(self, address: int) -> int:
        return self.slabs[address][0]

    def on_device(self, rows: torch.Tensor, address: int) -> torch.Tensor:
        """Make a tensor of the simulated device of what it sees at an address."""
        assert address in dict(self.slabs.values()), "the device was given an address that it does not know"
        self.mapped += 1
        seen: Any = (ctypes.c_char * rows.nbytes).from_address(address)
        return OnDevice(torch.frombuffer(seen, dtype=rows.dtype).view(-1, rows.shape[1]))

    def forget(self) -> Iterator[int]:
        """Close the files; yield what is still registered."""
        for *_, file, _ in self._tables:
            os.close(file)
        yield from self.slabs
