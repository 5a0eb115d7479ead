"""A step of one store that is launched as a whole, once it has come in the same way before.

Its kernels are given addresses and what there is room for; what changes from step to step lies on the device. So a
graph of them serves until a table, the window or a buffer moves: mostly until there is no room for another page.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch

from ...device.graphs import CudaGraphs
from ..decoding import Decode, Decoded, Take
from .decode import decode, run
from .results import results_bytes, results_in
from .sizes import Sizes, sizes_of


class Captured(NamedTuple):
    """A graph, what it reads that is new in every step, and where it leaves its results."""

    query: torch.Tensor
    sink_logits: torch.Tensor | None
    memory: torch.Tensor
    replay: Callable[[], None]


class StepGraph:
    """The steps of one store.

    Parameters
    ----------
    graphs : CudaGraphs
    """

    def __init__(self, graphs: CudaGraphs) -> None:
        self._graphs: CudaGraphs | None = graphs  # None once one was refused
        self._seen: tuple[object, ...] | None = None  # how the last step came
        self._captured: Captured | None = None  # for a step that comes so

    def decode(self, asked: Decode, take: Take, wide: bool) -> Decoded:
        """Attend one query of each sequence, as `decode.decode` does."""
        sizes, captured = sizes_of(asked), self._captured
        seen = None if self._graphs is None else _how(asked, sizes, take)
        if seen is None or seen != self._seen:
            self._seen, self._captured = seen, None
            return decode(asked, take, wide)
        if captured is None:
            memory = self._capture(asked, sizes, take, wide)
        else:
            memory = captured.memory
            captured.query.copy_(asked.query)
            if captured.sink_logits is not None and asked.sink_logits is not None:
                captured.sink_logits.copy_(asked.sink_logits)
            captured.replay()
        # The next step writes there again; these results are those of this one.
        return results_in(memory.clone(), sizes, wide).decoded(asked, sizes)

    def _capture(self, asked: Decode, sizes: Sizes, take: Take, wide: bool) -> torch.Tensor:
        """Take a step in memory that stays, and capture it as it was taken then: compiled, loaded, with its buffers."""
        assert self._graphs is not None, "no graphs"
        query = asked.query.clone()
        sinks = None if asked.sink_logits is None else asked.sink_logits.clone(memory_format=torch.contiguous_format)
        memory = torch.empty(results_bytes(sizes, wide), dtype=torch.uint8, device=query.device)
        fixed, results = replace(asked, query=query, sink_logits=sinks), results_in(memory, sizes, wide)

        def launches() -> None:
            run(fixed, sizes, take, results, wide)

        launches()
        try:
            self._captured = Captured(query, sinks, memory, self._graphs.capture(launches))
        except RuntimeError as error:
            self._graphs = None
            told = (
                f"a decode step could not be captured ({error}); its kernels are launched one by one, which is slower"
            )
            warnings.warn(told, RuntimeWarning, stacklevel=2)
        return memory


def _how(asked: Decode, sizes: Sizes, take: Take) -> tuple[object, ...]:
    """Tell how a step comes: two that come alike differ in numbers on the device alone."""
    kept = () if asked.kept is None else (*asked.kept.keys, *asked.kept.values, asked.kept.use)
    cold = *(asked.index or ()), *(asked.rows or ()), *kept
    tensors = *asked.sinks, *asked.hot, asked.ids, asked.counts, asked.odd, *cold
    given = asked.scale, asked.softcap, asked.group_max, asked.sink_logits is None
    return sizes, given, take.version, tuple(tensor.data_ptr() for tensor in tensors)
