"""What Triton's kernels read on the simulated device, in bytes of each tensor that they are given."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import simulated_launch
import torch
from simulated_device import SimulatedDevice
from triton.runtime.interpreter import InterpreterBuilder

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pytest
    from numpy.typing import NDArray

Place = tuple[str, str]
"""A kernel, and one of its tensors."""


class Reads:
    """What is read from now on; `launch` takes the place of the one that launches kernels.

    Attributes
    ----------
    asked : Counter
        Bytes that programs ask for.
    once : Counter
        Bytes that memory must give at the least: a launch reads each number once.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked, self.once = Counter[Place](), Counter[Place]()
        self._ranges = dict[str, tuple[int, int]]()
        self._seen = defaultdict[str, list["NDArray[np.uint64]"]](list)
        load = InterpreterBuilder.create_masked_load

        def masked_load(builder: Any, pointers: Any, mask: Any, *more: Any) -> Any:
            at = pointers.data[mask.data.astype(bool)]
            for name, (start, stop) in self._ranges.items():
                self._seen[name].append(at[(at >= start) & (at < stop)])
            return load(builder, pointers, mask, *more)

        monkeypatch.setattr(InterpreterBuilder, "create_masked_load", masked_load)

    def launch(self, kernel: Any, grid: tuple[int, ...], given: dict[str, Any], **more: Any) -> None:
        """Run a kernel, and count."""
        tensors = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
        inner = {name: SimulatedDevice.inner(value) for name, value in tensors.items()}
        self._ranges = {name: (t.data_ptr(), t.data_ptr() + t.numel() * t.element_size()) for name, t in inner.items()}
        self._seen.clear()
        simulated_launch.launch(kernel, grid, given, **more)
        for name, pieces in self._seen.items():
            at, size = np.concatenate(pieces), inner[name].element_size()
            place = "widen" if more.get("WIDER") else kernel.__name__, name.removesuffix("_ptr")
            self.asked[place] += len(at) * size
            self.once[place] += len(np.unique(at)) * size

    def clear(self) -> None:
        """Forget what was read."""
        self.asked.clear()
        self.once.clear()


def total(counts: Counter[Place], names: Iterable[str]) -> int:
    """Sum up what whatever kernels read of tensors."""
    wanted = set(names)
    return sum(count for (_, name), count in counts.items() if name in wanted)
