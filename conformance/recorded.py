"""Graphs of Triton's launches without a GPU: what a capture would record is recorded, and run again by the interpreter.

As a graph does, a record knows where memory lies and keeps none of it: a replay that reads what is gone fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from kiv_fast.ops.triton import decode
from kiv_fast.ops.triton.launch import launch
from torch.multiprocessing.reductions import StorageWeakRef

from .interpreter import hasten

if TYPE_CHECKING:
    from collections.abc import Callable

hasten()


class Memory(NamedTuple):
    """A tensor whose memory someone else must keep."""

    storage: StorageWeakRef
    dtype: torch.dtype
    layout: tuple[int, tuple[int, ...], tuple[int, ...]]

    def tensor(self) -> torch.Tensor:
        storages: Any = torch.UntypedStorage
        storage = storages._new_with_weak_ptr(self.storage.cdata)
        assert storage is not None, "a graph reads memory that is gone"
        made = torch.empty(0, dtype=self.dtype, device="cpu")
        made.set_(storage, *self.layout)  # pyright: ignore[reportCallIssue, reportArgumentType]
        return made


def _memory(value: Any) -> Any:
    """Forget a tensor, but for its place; a simulated device's is the one behind it."""
    if not isinstance(value, torch.Tensor):
        return value
    inner: torch.Tensor = vars(value).get("inner", value)
    layout = int(inner.storage_offset()), tuple(inner.shape), inner.stride()
    return Memory(StorageWeakRef(inner.untyped_storage()), inner.dtype, layout)


class RecordedGraphs:
    """Stands in for `CudaGraphs`.

    Parameters
    ----------
    before : callable
        Called before each replay.

    Attributes
    ----------
    captures, replays : int
        How many there were.
    """

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        self._before = before
        self.captures = self.replays = 0

    def capture(self, launches: Callable[[], None]) -> Callable[[], None]:
        records = list[tuple[Any, tuple[int, ...], dict[str, Any], dict[str, Any]]]()

        def record(kernel: Any, grid: tuple[int, ...], given: dict[str, Any], **more: Any) -> None:
            mine = {name: _memory(given[name]) for name in kernel.arg_names if name not in more}
            records.append((kernel, grid, mine, more))

        real, decode.launch = decode.launch, record
        try:
            launches()
        finally:
            decode.launch = real
        self.captures += 1

        def replay() -> None:
            self.replays += 1
            self._before()
            for kernel, grid, mine, more in records:
                given = {name: value.tensor() if isinstance(value, Memory) else value for name, value in mine.items()}
                launch(kernel, grid, given, **more)

        return replay
