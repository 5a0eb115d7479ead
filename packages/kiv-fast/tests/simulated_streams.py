"""Streams of the simulated device: copies that land late, and memory that may not be used before or until they do.

A copy on the second stream has landed once it was waited for, and not before: until then its target is full of NaN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from kiv_fast import shared
from kiv_fast.attention import choice, fused
from kiv_fast.device.gather import Gather
from kiv_fast.device.transfer import Beside, CudaStreams, Transfer
from kiv_fast.memory.pinning import CudaRuntime, SlabPinning
from simulated_device import DEVICE, OnDevice, SimulatedDevice

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pytest


class SimulatedStreams(CudaStreams):
    """`CudaStreams` of the simulated device: a slot must stay as it is until its event, or the end, was waited for."""

    def __init__(self, device: torch.device) -> None:
        assert device == DEVICE
        super().__init__(device)
        self._flying: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        self._begun = 0
        self.beside = 0  # copies that were begun on the second stream
        self._pinned: list[torch.Tensor] = []
        self._joins: list[Callable[[], None]] = []
        self._staged: list[tuple[torch.Tensor, torch.Tensor]] = []  # from pinned memory, and not waited for by the host

    def pinned(self, nbytes: int) -> torch.Tensor:
        made = torch.full((nbytes,), 255, dtype=torch.uint8)
        self._pinned.append(made)
        return made

    def copy(self, host: torch.Tensor) -> torch.Tensor:
        self._begun += 1
        self._flying.append((self._begun, host, host.clone()))
        return host.to(DEVICE, copy=True, non_blocking=True)

    def send(self, host: torch.Tensor) -> torch.Tensor:
        return host.to(DEVICE, non_blocking=True)

    def fetch(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        inner = SimulatedDevice.inner(tensor).clone()
        return lambda: inner

    def land(self, until: int) -> None:
        """Note that the copies up to a number are over."""
        for _, host, sent in [entry for entry in self._flying if entry[0] <= until]:
            same = host.contiguous().view(torch.uint8), sent.contiguous().view(torch.uint8)
            assert torch.equal(*same), "a slot was filled again before its copy was over"
        self._flying = [entry for entry in self._flying if entry[0] > until]

    def record(self) -> Callable[[], None]:
        until = self._begun
        return lambda: self.land(until)

    def mark(self) -> int:
        assert SimulatedDevice.current is not None
        return SimulatedDevice.current.clock

    def copy_beside(self, parts: Sequence[tuple[torch.Tensor, torch.Tensor]], after: int) -> Beside:
        device = SimulatedDevice.current
        assert device is not None
        self.check_staged()
        pinned = {made.data_ptr() for made in self._pinned}
        sent: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        staged: list[tuple[torch.Tensor, torch.Tensor]] = []
        for host, target in parts:
            assert isinstance(target, OnDevice)
            assert host.is_contiguous(), "a copy that the driver would make in two"
            inner, kept = SimulatedDevice.inner(target), host.clone()
            used = device.used.get(inner.untyped_storage().data_ptr(), 0)
            assert used <= after, "a buffer was filled while it was read"
            inner.view(-1).view(torch.uint8).fill_(255)
            sent.append((host, kept, inner))
            if host.untyped_storage().data_ptr() in pinned:
                staged.append((host, kept))
            self.beside += 1
        self._staged += staged
        self._joins.append(join := self._joining(sent))

        def wait() -> None:
            join()
            self.check_staged()
            self._staged = [pair for pair in self._staged if not any(pair is mine for mine in staged)]

        return Beside(join, wait)

    @staticmethod
    def _joining(sent: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> Callable[[], None]:
        """Return what lets copies land: what is copied, a copy of it, and the target."""

        def join() -> None:
            while sent:
                host, kept, inner = sent.pop()
                assert same_bytes(host, kept), "what was copied was changed before its copy was over"
                inner.copy_(kept)

        return join

    def rejoin(self) -> None:
        while self._joins:
            self._joins.pop()()

    def check_staged(self) -> None:
        """Check that pinned memory is as it was when copies out of it began which, for all the host knows, go on."""
        for host, kept in self._staged:
            assert same_bytes(host, kept), "pinned memory was filled again before its copy was over"


def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Tell whether two contiguous tensors have the same bytes."""
    return torch.equal(one.view(-1).view(torch.uint8), other.view(-1).view(torch.uint8))


class Runtime(CudaRuntime):
    """Registers everything."""

    def register(self, address: int, nbytes: int) -> None:
        pass

    def unregister(self, address: int) -> None:
        pass

    def device_address(self, address: int) -> int:
        return address


def on_device(tensor: torch.Tensor, address: int) -> OnDevice:
    """Return host memory as the device sees it."""
    assert address == tensor.data_ptr()
    return OnDevice(tensor)


def install(monkeypatch: pytest.MonkeyPatch, mapped: bool = True) -> list[SimulatedStreams]:
    """Let stores be made on the simulated device, which reads host memory by itself if it is `mapped`.

    Returns the streams of all such stores, as they come.
    """
    made: list[SimulatedStreams] = []

    def gather_for(device: torch.device, direct: bool) -> Gather:
        if device != DEVICE:
            return Gather(Transfer())
        made.append(SimulatedStreams(device))
        return Gather(Transfer(made[-1]), on_device if mapped else None)

    runtime = SlabPinning(Runtime(DEVICE), 1 << 40)
    monkeypatch.setattr(shared, "gather_for", gather_for)
    monkeypatch.setattr(shared, "pinning_for", lambda device: runtime if device == DEVICE else None)
    ways = [way for way in fused.WAYS["cuda"] if way.name != "FlexAttention"]  # which asks what the device is called
    monkeypatch.setitem(fused.WAYS, DEVICE.type, tuple(ways))
    choice.choose.cache_clear()
    return made
