"""Host memory that a device reaches by itself: tables in RAM, registered slab by slab as they come into use.

A slab is registered once and stays until its table goes. The memory of a registered page must not be given back before:
the device would keep the old one.

A device may see a slab at another address than the host does. Where it sees slabs of one table apart, what is in use of
a table is registered as one slab, anew each time that it has doubled.
"""

from __future__ import annotations

import ctypes
import sys
import warnings
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch

LEAST_BYTES = 1 << 20
MOST_BYTES = 16 << 20
"""The first slab of a table, and the largest: each is as large as all before it, within these."""

SHARE = 4
"""At most a quarter of the machine's memory is pinned: what is pinned is lost to everything else, and Windows, with it
WSL2, refuses more than about half."""


@dataclass
class Region:
    """A mapping of which a beginning is pinned."""

    address: int
    nbytes: int
    slabs: list[int] = field(default_factory=list[int])  # bytes of the pinned ones, side by side from the beginning on
    seen: int = 0  # the address at which the device sees the first of them

    @property
    def pinned(self) -> int:
        """Bytes that are pinned, from the beginning on."""
        return sum(self.slabs)


cuda: Any = torch.cuda

_MAPPED = 2
"""cudaHostRegisterMapped: the device can read the memory by itself."""


@cache
def loaded_runtime() -> tuple[Any, str]:
    """Find the runtime that torch has loaded, and how the names of its functions begin; None where it is not found."""
    prefix = "hip" if torch.version.hip else "cuda"
    if sys.platform == "win32":
        names: list[str | None] = [str(path) for path in (Path(torch.__file__).parent / "lib").glob("cudart64_*.dll")]
    else:  # torch shows its symbols to all of the process; else the library is known by its name
        release = str(torch.version.cuda).partition(".")[0]
        names = [None, "libamdhip64.so" if torch.version.hip else f"libcudart.so.{release}"]
    for name in names:
        try:
            library = ctypes.CDLL(name)
            getattr(library, f"{prefix}HostGetDevicePointer")
        except (OSError, AttributeError):
            continue
        return library, prefix
    return None, prefix


class CudaRuntime:
    """CUDA's registration of host memory with a device, which need not be the current one; calls raise RuntimeError.

    Written from the documentation; not run by this project's tests. torch has no name for the third call.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def register(self, address: int, nbytes: int) -> None:
        """Pin memory."""
        with cuda.device(self._device):
            self._check(cuda.cudart().cudaHostRegister(address, nbytes, _MAPPED))

    def unregister(self, address: int) -> None:
        """Release what was registered at `address`, once nothing that was begun reads it any more."""
        cuda.synchronize(self._device)
        self._check(cuda.cudart().cudaHostUnregister(address))

    def device_address(self, address: int) -> int:
        """Find the address at which the device sees registered memory."""
        library, prefix = loaded_runtime()
        if library is None:
            raise RuntimeError("the runtime that torch has loaded was not found")
        seen = ctypes.c_void_p()
        find = getattr(library, f"{prefix}HostGetDevicePointer")
        with cuda.device(self._device):
            self._check(find(ctypes.byref(seen), ctypes.c_void_p(address), ctypes.c_uint(0)))
        return seen.value or 0

    def _check(self, code: Any) -> None:
        """Raise if a call failed, and let the runtime forget it: torch would take it for an error of a kernel."""
        if int(code):
            library, prefix = loaded_runtime()
            if library is not None:
                getattr(library, f"{prefix}GetLastError")()
            cuda.check_error(int(code))


class SlabPinning:
    """Slabs of powers of two, `limit_bytes` in all; after the first failure ordinary memory, with one warning."""

    def __init__(self, runtime: CudaRuntime, limit_bytes: int) -> None:
        self._runtime, self.limit_bytes = runtime, limit_bytes
        self._held = 0
        self._failed = False
        self._apart = False  # whether the device sees slabs of one table apart

    def cover(self, region: Region, nbytes: int) -> None:
        """Register slabs until the first n bytes are pinned, and seen by the device one after the other."""
        while (done := region.pinned) < nbytes:
            slab = min(max(done, LEAST_BYTES), MOST_BYTES)
            if self._failed or self._apart:  # of a table of which not all is pinned, the device reads nothing
                self.release(region)
                done, slab = 0, min(max(LEAST_BYTES, 1 << (nbytes - 1).bit_length()), region.nbytes)
            if self._failed:
                return
            if done + slab > region.nbytes:
                return  # the very end of the addresses that were reserved
            try:
                self._register(region, done, slab)
            except RuntimeError as error:
                self._failed = True
                self.release(region)  # also what is registered, and seen nobody knows where
                rule = f"host memory is not pinned from here on ({error}): copies will be slower"
                warnings.warn(rule, RuntimeWarning, stacklevel=2)

    def _register(self, region: Region, done: int, slab: int) -> None:
        """Register a slab behind those of a region, or none of it if the device sees it apart from them."""
        if self._held + slab > self.limit_bytes:
            raise RuntimeError(f"{self._held} bytes are pinned, and {self.limit_bytes} are the most")
        self._runtime.register(region.address + done, slab)
        region.slabs.append(slab)
        self._held += slab
        seen = self._runtime.device_address(region.address + done)
        if not done:
            region.seen = seen
        elif seen != region.seen + done:
            self._apart = True
            self.release(region)

    def address_on_device(self, tensor: torch.Tensor) -> int:
        """Find the address at which the device sees memory that torch has pinned.

        Raises
        ------
        RuntimeError
        """
        return self._runtime.device_address(tensor.data_ptr())

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
    return SlabPinning(CudaRuntime(device), psutil.virtual_memory().total // SHARE)
