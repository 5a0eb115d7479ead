"""How arithmetic on a device reads what lies in RAM: rows of a table, by numbers that were computed there.

A CPU reads them where they are. So does a CUDA device, from memory that is registered with it: the host learns neither
which rows are read nor when, and waits for nothing. Where memory is not registered, the host gathers and sends.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.functional import embedding

from ..memory.growable_table import Table
from ..memory.pinning import SlabPinning
from .transfer import CudaStreams, Transfer

Mapped = Callable[[torch.Tensor, int], torch.Tensor | None]


class Gather:
    """A device's way to what lies in RAM.

    Parameters
    ----------
    transfer : Transfer
        For what the host knows anyway, and for rows that the host gathers.
    mapped : callable, optional
        Makes a tensor of the device of a table's rows and the address at which it sees them, for tables that are
        registered whole; or None, of memory that another device has. Absent if the device is the CPU, or does not read
        host memory by itself.

    Attributes
    ----------
    in_place : bool
        Whether the arithmetic reads RAM where it lies.
    """

    def __init__(self, transfer: Transfer, mapped: Mapped | None = None) -> None:
        self.transfer, self._mapped = transfer, mapped
        self.in_place = transfer.streams is None

    def rows(self, table: Table, at: torch.Tensor) -> torch.Tensor:
        """Gather rows of a table by their numbers, int64 ``[n, K]`` on the device: ``[n, K, width]`` there."""
        if self._mapped is not None and table.pinned:
            return embedding(at, self._seen(table, self._mapped))
        return self.transfer.upload(embedding(self.transfer.fetch(at), table.rows))

    def whole(self, table: Table) -> torch.Tensor | None:
        """View a table ``[records, *shape]`` as the device sees it; None where it does not."""
        if self._mapped is None or not table.pinned:
            return None
        return self._seen(table, self._mapped).view(table.tensor.shape)

    def pinned(self, tensor: torch.Tensor, pinning: SlabPinning | None) -> torch.Tensor | None:
        """View pinned host memory where the arithmetic can reach it; None where it cannot."""
        if self._mapped is None or pinning is None:
            return None
        return self._mapped(tensor, pinning.address_on_device(tensor))

    @staticmethod
    def _seen(table: Table, mapped: Mapped) -> torch.Tensor:
        """View the rows of a table where the device sees them now."""
        if table.mapped is None or table.mapped[0] != table.seen:
            seen = mapped(table.rows, table.seen)
            if seen is None:
                raise RuntimeError("registered memory is taken for another device's")
            table.mapped = table.seen, seen
        return table.mapped[1]


class _Registered:
    """Host memory under the address at which a CUDA device sees it."""

    def __init__(self, tensor: torch.Tensor, address: int) -> None:
        self._tensor = tensor  # lives as long as this
        nbytes = tensor.numel() * tensor.element_size()
        seen = {"shape": (nbytes,), "typestr": "|u1", "data": (address, False), "version": 3}
        self.__cuda_array_interface__: dict[str, Any] = seen


def map_to_cuda(device: torch.device, tensor: torch.Tensor, address: int) -> torch.Tensor | None:
    """Return a registered tensor as one of a CUDA device; None where torch takes it for another's, and copies it.

    Written from the documentation; not run here.
    """
    seen = torch.as_tensor(_Registered(tensor, address), device=device)
    return seen.view(tensor.dtype).view(tensor.shape) if seen.data_ptr() == address else None


def gather_for(device: torch.device, direct: bool) -> Gather:
    """Choose the way for stores on `device`, `direct` if it reads host memory by itself."""
    transfer = Transfer(CudaStreams(device) if device.type == "cuda" else None)
    return Gather(transfer, partial(map_to_cuda, device) if direct else None)


def reads_host_memory(device: torch.device, pinning: SlabPinning | None) -> bool:
    """Try whether a device reads host memory by itself; warn if a CUDA device does not."""
    if device.type != "cuda":
        return False
    try:
        if works(gather_for(device, True), device, pinning):
            return True
        reason = "it read other numbers"
    except RuntimeError as error:
        reason = str(error)
    rule = f"the device does not read host memory by itself ({reason}): each step waits for the host more often"
    warnings.warn(rule, RuntimeWarning, stacklevel=2)
    return False


def works(gather: Gather, device: torch.device, pinning: SlabPinning | None) -> bool:
    """Try whether a device reads what the host wrote, also after it has read the same memory before."""
    table = Table((2,), torch.float32, torch.device("cpu"), pinning)
    table.ensure(4)
    if pinning is not None and not table.pinned:
        raise RuntimeError("host memory is not registered")
    at = torch.tensor([3, 1], device=device)
    for start in (0.0, 100.0):
        table.tensor[:4] = torch.arange(start, start + 8, device="cpu").view(4, 2)
        if not torch.equal(gather.rows(table, at).cpu(), table.tensor[[3, 1]]):
            return False
    return True
