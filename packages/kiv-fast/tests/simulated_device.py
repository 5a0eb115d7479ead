"""A second device inside the CPU: tensors that say they are elsewhere, compute here, and count what the host awaits.

It runs the code path of a CUDA store without a GPU. Operations that mix devices fail as they would there; a number, a
shape or a copy that the host needs from the device is a wait, and is kept with the function that asked for it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
from kiv_fast.device.transfer import CudaStreams
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

if TYPE_CHECKING:
    from collections.abc import Callable

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


class SimulatedDevice(TorchDispatchMode):
    """While it is entered, `DEVICE` works; `waits` are the places where the host waited for it.

    `operations` are those on its tensors that would launch something there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.operations: list[str] = []  # that would launch something
        self._literals = _Literals()

    def __enter__(self) -> Any:
        self._literals.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._literals.__exit__(*error)

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
        if (there or target == DEVICE.type) and name not in QUIET:
            self.operations.append(name)
        result = func(*tree_map(self._inner, args), **tree_map(self._inner, kwargs))
        stays = isinstance(args[0], OnDevice) if name == "copy_" else bool(there) and target is None
        if target == DEVICE.type or stays:
            return tree_map(lambda x: OnDevice(x) if isinstance(x, torch.Tensor) else x, result)
        return result

    @staticmethod
    def _inner(x: Any) -> Any:
        return x.inner if isinstance(x, OnDevice) else x

    @staticmethod
    def _where(name: str) -> str:
        frame = outermost = sys._getframe()
        while frame is not None and "/kiv_fast/" not in frame.f_code.co_filename:
            frame, outermost = frame.f_back, frame
        code = (frame or outermost).f_code
        return f"{code.co_filename.split('/')[-1]}:{code.co_name}:{name}"


class SimulatedStreams(CudaStreams):
    """`CudaStreams` of the simulated device: a slot must stay as it is until its event, or the end, was waited for."""

    def __init__(self, device: torch.device) -> None:
        assert device == DEVICE
        super().__init__(device)
        self._flying: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        self._begun = 0

    def pinned(self, nbytes: int) -> torch.Tensor:
        return torch.full((nbytes,), 255, dtype=torch.uint8)

    def copy(self, host: torch.Tensor) -> torch.Tensor:
        self._begun += 1
        self._flying.append((self._begun, host, host.clone()))
        return host.to(DEVICE, copy=True, non_blocking=True)

    def send(self, host: torch.Tensor) -> torch.Tensor:
        return host.to(DEVICE, non_blocking=True)

    def fetch(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        inner = tensor.inner.clone()
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
