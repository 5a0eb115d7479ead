"""A second device inside the CPU: tensors that say they are elsewhere, compute here, and count what the host awaits.

It runs the code path of a CUDA store without a GPU. Operations that mix devices fail as they would there; a number, a
shape or a copy that the host needs from the device is a wait, and is kept with the function that asked for it. The
bytes of its tensors are counted as they come and go.
"""

from __future__ import annotations

import sys
import weakref
from typing import TYPE_CHECKING, Any

import torch
from simulated_attention import KERNELS
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

if TYPE_CHECKING:
    from collections.abc import Sequence

DEVICE = torch.device("meta")
"""The one kind of device beside the CPU that every build of torch knows; real numbers stand behind it here."""

ASKING = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "unique_dim"}
"""Operations whose result, or its shape, the host must know."""


QUIET = {
    *(
        "view",
        "_unsafe_view",
        "unbind",
        "select",
        "slice",
        "transpose",
        "permute",
        "expand",
        "as_strided",
        "detach",
        "alias",
    ),
    *("unsqueeze", "squeeze", "split", "t", "empty", "empty_strided", "new_empty", "empty_like"),
}
"""Operations that launch nothing: they look at the same numbers, or take memory."""


class OnDevice(torch.Tensor):
    """A tensor that says it is on the device."""

    @staticmethod
    def __new__(cls: Any, inner: torch.Tensor) -> Any:
        made: Any = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=DEVICE
        )
        made.inner = inner
        return made

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def data_ptr(self) -> int:
        inner: Any = self.inner
        return inner.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of a SimulatedDevice")


class _Literals(TorchFunctionMode):
    """`torch.tensor` of numbers makes no call that a device could see when it is told the device itself."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and kwargs.get("device") == DEVICE:
            return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        return func(*args, **kwargs)


def is_view(func: Any) -> bool:
    """Tell whether an operation touches no number."""
    return any(found.alias_info is not None and not found.alias_info.is_write for found in func._schema.returns)


class SimulatedDevice(TorchDispatchMode):
    """While it is entered, `DEVICE` works.

    Attributes
    ----------
    waits : the places where the host waited for it
    operations : those on its tensors that would launch something there
    nbytes, peak_bytes : of all its tensors now, and the most so far since the test set it
    clock : int
        Operations that were begun.
    used : dict
        When each piece of memory was last read or written, by its address.
    """

    current: SimulatedDevice | None = None

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.operations: list[str] = []
        self.nbytes = self.peak_bytes = self.clock = 0
        self.used: dict[int, int] = {}
        self._holders: dict[int, int] = {}
        self._literals = _Literals()

    def __enter__(self) -> Any:
        SimulatedDevice.current = self
        self._literals.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._literals.__exit__(*error)
        SimulatedDevice.current = None

    def _made(self, inner: torch.Tensor, given: Sequence[int]) -> OnDevice:
        """Wrap a result, and count its memory, but for that of the host which the device reads."""
        made, storage = OnDevice(inner), inner.untyped_storage()
        address, nbytes = storage.data_ptr(), storage.nbytes()
        if address in self._holders or address not in given:
            if address not in self._holders:
                self.nbytes += nbytes
                self.peak_bytes = max(self.peak_bytes, self.nbytes)
            self._holders[address] = self._holders.get(address, 0) + 1
            weakref.finalize(made, self._gone, address, nbytes)
        return made

    def _gone(self, address: int, nbytes: int) -> None:
        self._holders[address] -= 1
        if not self._holders[address]:
            del self._holders[address]
            self.nbytes -= nbytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func.name().split("::")[1].split(".")[0]
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        there = [x for x in tensors if isinstance(x, OnDevice)]
        target = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
        if target == DEVICE.type:
            kwargs["device"] = torch.device("cpu")
        moving = name in ("_to_copy", "copy_")
        if there and not moving:
            here = [x for x in tensors if not isinstance(x, OnDevice) and x.dim() > 0]
            assert not here, f"{func} mixes devices"
        onto = target == DEVICE.type if name == "_to_copy" else isinstance(args[0], OnDevice) if moving else False
        leaves = moving and bool(there) and (target == "cpu" if name == "_to_copy" else not onto)
        # A copy to the device, too, is awaited unless told otherwise.
        awaited = onto and len(there) < len(tensors) and not (kwargs.get("non_blocking") or True in args[2:])
        if (there and name in ASKING) or leaves or awaited:
            self.waits.append(self._where(name))
        given = [self.inner(x).untyped_storage().data_ptr() for x in there]
        if there and not is_view(func):
            self.clock += 1
            self.used.update(dict.fromkeys(given, self.clock))
        if (there or target == DEVICE.type) and name not in QUIET:
            self.operations.append(name)
        kernel: Any = KERNELS.get(name, func) if there else func
        result = kernel(*tree_map(self.inner, args), **tree_map(self.inner, kwargs))
        stays = isinstance(args[0], OnDevice) if name == "copy_" else bool(there) and target is None
        if target == DEVICE.type or stays:
            return tree_map(lambda x: self._made(x, given) if isinstance(x, torch.Tensor) else x, result)
        return result

    @staticmethod
    def inner(x: Any) -> Any:
        """Return what stands behind a tensor."""
        return x.inner if isinstance(x, OnDevice) else x

    @staticmethod
    def _where(name: str) -> str:
        frame = outermost = sys._getframe()
        while frame is not None and "/kiv_fast/" not in frame.f_code.co_filename:
            frame, outermost = frame.f_back, frame
        code = (frame or outermost).f_code
        return f"{code.co_filename.split('/')[-1]}:{code.co_name}:{name}"
