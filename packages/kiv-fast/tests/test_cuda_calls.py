"""What is asked of CUDA's runtime, of which torch has some calls and a library the others: both are simulated."""

from __future__ import annotations

import ctypes
import sys
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import torch
from kiv_fast.device.gather import Gather, map_to_cuda, works
from kiv_fast.device.transfer import Transfer
from kiv_fast.memory import pinning
from kiv_fast.memory.pinning import CudaRuntime, SlabPinning, loaded_runtime, pinning_for
from simulated_streams import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

SHIFT = 1 << 20
SECOND = torch.device("cuda", 1)


class Calls:
    """A runtime that sees memory further on, and answers `code`; `error` is the last one, as CUDA keeps it.

    It has memory for the device that is the current one.
    """

    def __init__(self) -> None:
        self.code = self.error = 0
        self.said: list[tuple[str, int]] = []
        self.current = torch.device("cuda", 0)

    @contextmanager
    def device(self, device: torch.device) -> Generator[None]:
        before, self.current = self.current, device
        try:
            yield
        finally:
            self.current = before

    def synchronize(self, device: torch.device) -> None:
        assert device == SECOND
        self.said.append(("wait", 0))

    def _answer(self, name: str, address: int) -> int:
        assert self.current == SECOND or name == "unregister"
        self.said.append((name, address))
        self.error = self.code
        return self.code

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:
        assert flags == 2, "the device could not read it"
        return self._answer("register", address)

    def cudaHostUnregister(self, address: int) -> int:
        return self._answer("unregister", address)

    def cudaHostGetDevicePointer(self, out: Any, address: ctypes.c_void_p, flags: ctypes.c_uint) -> int:
        out._obj.value = (address.value or 0) + SHIFT
        return self._answer("find", address.value or 0)

    def cudaGetLastError(self) -> int:
        code, self.error = self.error, 0
        return code


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    runtime = Calls()

    def check(code: int) -> None:
        if code:
            raise RuntimeError(f"CUDA error {code}")

    shown = SimpleNamespace(
        cudart=lambda: runtime, check_error=check, synchronize=runtime.synchronize, device=runtime.device
    )
    monkeypatch.setattr(pinning, "cuda", shown)
    monkeypatch.setattr(pinning, "loaded_runtime", lambda: (runtime, "cuda"))
    return runtime


def test_the_runtime_tells_the_address_of_the_device(calls: Calls) -> None:
    runtime = CudaRuntime(SECOND)
    runtime.register(4096, 8192)
    assert runtime.device_address(4096) == 4096 + SHIFT
    runtime.unregister(4096)
    assert calls.said == [("register", 4096), ("find", 4096), ("wait", 0), ("unregister", 4096)]


@pytest.mark.parametrize(
    "call",
    [lambda it: it.register(0, 1), lambda it: it.unregister(0), lambda it: it.device_address(0)],
    ids=["register", "unregister", "device_address"],
)
def test_a_refusal_is_forgotten_by_the_runtime(calls: Calls, call: Callable[[CudaRuntime], Any]) -> None:
    """Or torch would raise it where it looks next, after a kernel that has nothing to do with it."""
    calls.code = 801
    with pytest.raises(RuntimeError, match="801"):
        call(CudaRuntime(SECOND))
    assert calls.error == 0


def test_a_runtime_that_is_not_found(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinning, "loaded_runtime", lambda: (None, "cuda"))
    with pytest.raises(RuntimeError, match="not found"):
        CudaRuntime(SECOND).device_address(4096)
    calls.code = 2
    with pytest.raises(RuntimeError, match="CUDA error 2"):
        CudaRuntime(SECOND).register(4096, 8192)


@pytest.mark.parametrize(
    ("system", "versions", "there", "begins"),
    [
        ("linux", {"cuda": "13.0", "hip": None}, None, "cuda"),
        ("linux", {"cuda": "12.6", "hip": None}, "libcudart.so.12", "cuda"),
        ("linux", {"cuda": None, "hip": "6.4"}, "libamdhip64.so", "hip"),
        ("win32", {"cuda": "12.6", "hip": None}, "cudart64_12.dll", "cuda"),
        ("linux", {"cuda": "13.0", "hip": None}, "elsewhere", "cuda"),
    ],
)
def test_where_the_runtime_is(
    system: str,
    versions: dict[str, Any],
    there: str | None,
    begins: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Among the symbols of the process, else in a library that torch has loaded."""

    def load(name: str | None) -> SimpleNamespace:
        shown = name if name is None else name.rpartition("/")[2]
        if shown is None and there is not None:
            return SimpleNamespace()
        if shown != there:
            raise OSError("no such library")
        return SimpleNamespace(**{f"{begins}HostGetDevicePointer": there})

    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "cudart64_12.dll").touch()
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(ctypes, "CDLL", load)
    for name, version in versions.items():
        monkeypatch.setattr(torch.version, name, version)
    library, prefix = loaded_runtime.__wrapped__()
    assert prefix == begins
    assert (library is None) == (there == "elsewhere")


@pytest.mark.parametrize("copied", [False, True])
def test_a_tensor_of_the_device_lies_where_the_device_sees_it(monkeypatch: pytest.MonkeyPatch, copied: bool) -> None:
    """Or there is none: where torch takes memory for another device's it gives a copy, which nobody writes again."""
    host, far, seen = torch.arange(6.0).view(3, 2), torch.arange(6.0).view(3, 2), []

    def as_tensor(of: Any, device: torch.device) -> torch.Tensor:
        seen.append((of.__cuda_array_interface__["data"][0], of.__cuda_array_interface__["shape"], device))
        bits = far.flatten().view(torch.uint8)
        return bits.clone() if copied else bits

    monkeypatch.setattr(torch, "as_tensor", as_tensor)
    found = map_to_cuda(SECOND, host, far.data_ptr())
    assert seen == [(far.data_ptr(), (24,), SECOND)]
    if copied:
        assert found is None
    else:
        assert found is not None
        assert torch.equal(found, host)


def test_registered_memory_that_is_taken_for_another_devices() -> None:
    """A device does not read that by itself, and a trial says so before a store relies on it."""
    gather = Gather(Transfer(), lambda *_: None)
    runtime = SlabPinning(Runtime(SECOND), 1 << 40)
    assert gather.pinned(torch.zeros(3), runtime) is None
    with pytest.raises(RuntimeError, match="another device's"):
        works(gather, torch.device("cpu"), runtime)


def test_a_quarter_of_the_memory_is_pinned_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows, and WSL2, refuse more than half."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=1 << 30))
    found = pinning_for(torch.device("cuda"))
    assert found is not None
    assert found.limit_bytes == 1 << 28
