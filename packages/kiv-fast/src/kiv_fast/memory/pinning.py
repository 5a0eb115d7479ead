"""Host memory that a device reaches by itself: tables in RAM, registered slab by slab as they come into use.

A slab is registered once and stays until its table goes. The memory of a registered page must not be given back before:
the device would keep the old one.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch

LEAST_BYTES = 1 << 20
MOST_BYTES = 16 << 20
"""The first slab of a table, and the largest: each is as large as all before it, within these."""

SHARE = 4
"""At most a quarter of the machine's memory is pinned: what is pinned is lost to everything else."""


@dataclass
class Region:
    """A mapping of which a beginning is pinned."""

    address: int
    nbytes: int
    slabs: list[int] = field(default_factory=list[int])  # bytes of the pinned ones, side by side from the beginning on

    @property
    def pinned(self) -> int:
        """Bytes that are pinned, from the beginning on."""
        return sum(self.slabs)


cuda: Any = torch.cuda

_MAPPED = 2
"""cudaHostRegisterMapped: the device can read the memory by itself."""


class CudaRuntime:
    """CUDA's registration of host memory; both calls raise RuntimeError.

    Written from the documentation; not run by this project's tests.
    """

    def register(self, address: int, nbytes: int) -> None:
        """Pin memory."""
        cuda.check_error(int(cuda.cudart().cudaHostRegister(address, nbytes, _MAPPED)))

    def unregister(self, address: int) -> None:
        """Release what was registered at `address`, once nothing that was begun reads it any more."""
        cuda.synchronize()
        cuda.check_error(int(cuda.cudart().cudaHostUnregister(address)))


class SlabPinning:
    """Slabs of powers of two, `limit_bytes` in all; after the first failure ordinary memory, with one warning."""

    def __init__(self, runtime: CudaRuntime, limit_bytes: int) -> None:
        self._runtime, self.limit_bytes = runtime, limit_bytes
        self._held = 0
        self._failed = False

    def cover(self, region: Region, nbytes: int) -> None:
        """Register slabs until the first n bytes are pinned."""
        while not self._failed and (done := region.pinned) < nbytes:
            slab = min(max(done, LEAST_BYTES), MOST_BYTES)
            if done + slab > region.nbytes:
                return  # the very end of the addresses that were reserved
            try:
                if self._held + slab > self.limit_bytes:
                    raise RuntimeError(f"{self._held} bytes are pinned, and {self.limit_bytes} are the most")
                self._runtime.register(region.address + done, slab)
            except RuntimeError as error:
                self._failed = True
                rule = f"host memory is not pinned from here on ({error}): copies will be slower"
                warnings.warn(rule, RuntimeWarning, stacklevel=2)
            else:
                region.slabs.append(slab)
                self._held += slab

    def release(self, region: Region) -> None:
        """Unregister the slabs of a region."""
        while region.slabs:
            slab = region.slabs.pop()
            self._held -= slab
            self._runtime.unregister(region.address + region.pinned)


def pinning_for(device: torch.device) -> SlabPinning | None:
    """Make what pins memory for stores on `device`; None for those on the CPU."""
    if device.type != "cuda":
        return None
    return SlabPinning(CudaRuntime(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // SHARE)
