"""`FastPool`: one cache, whose stores share its budgets."""

from __future__ import annotations

from typing import NoReturn, SupportsIndex

import torch
from kiv_reference.errors import KIVUsageError, refuse
from kiv_reference.report import TierBytes

from .attention.choice import told
from .device.kept import KeptRows
from .guard import public
from .shape import Shape
from .shared import Shared
from .store import FastStore


class FastPool(Shared):
    """A cache with tiers: device, RAM and disk.

    A pool has one lock, which every public call of the pool and of its stores takes: different stores, forks of one
    store among them, may be used by different threads at the same time, and their calls take turns. One store belongs
    to one thread at a time, since what it answers depends on the order of its own calls.

    Parameters
    ----------
    config : KIVConfig
    io : FileIO, optional
        The system calls of the disk tier.
    tuning : Tuning, optional
        How much is done at once.
    ops : "auto", "torch", "cpu" or "triton"
        By what a step is computed: "torch" on any device and in any dtype; "cpu" is compiled, for float32, bfloat16 and
        float16 on a CPU; "triton" has decode steps without padding on CUDA and ROCm devices, in the same dtypes, and
        leaves the rest to torch; "auto" takes what is installed and can serve.

    Attributes
    ----------
    counters : Counters
        What the stores did so far.

    Raises
    ------
    KIVUsageError
        `ops` is none of the four.
    KIVUnsupportedError
        `ops` is "cpu" or "triton", and this installation has none; or, at the first append, they cannot serve.
    """

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Refuse to be copied or pickled: a copy would give back what it does not own (SPEC 9.4)."""
        raise refuse(
            KIVUsageError,
            "a pool cannot be copied or pickled",
            "a pool",
            "Make a new pool and append to its stores again.",
        )

    @public
    def layer_store(self) -> FastStore:
        """Make a new, empty store for one attention layer."""
        self.check_open()
        return FastStore(self)

    @property
    @public
    def operations(self) -> str:
        """By what a step is computed: "torch", "triton (decode), torch", or "cpu" with its instructions.

        All that its stores use; while none holds tokens, what float32 on the CPU would get.
        """
        return ", ".join(sorted({self.ops.told(shape) for shape in self._shapes}))

    @property
    @public
    def exact_attention(self) -> str:
        """By what exact calls attend tiles of tokens: torch's fused attention, by name, or "logits written out".

        With the dtype, as in "flash (bfloat16)", and without a soft cap; of all stores, as for `operations`.
        """
        return ", ".join(sorted({told(shape) for shape in self._shapes}))

    @property
    def _shapes(self) -> set[Shape]:
        """Of the stores that hold tokens; while none does, one in float32 on the CPU."""
        return {state.shape for state in self.states} or {Shape(1, 1, 1, 1, torch.float32, torch.device("cpu"))}

    @public
    def memory(self) -> TierBytes:
        """Count the bytes held in each tier (SPEC 10.3)."""
        return self.ledger.used

    @public
    def device_breakdown(self) -> dict[str, int]:
        """Count device bytes by what they are for; together, `memory().device`."""
        states = self.states
        parts = {"sinks, hot tokens, validity": sum(state.held.bytes.device for state in states)}
        for cold in self.colds:
            parts["index"] = parts.get("index", 0) + cold.index_bytes
        if self._kept:
            parts["rows of cold pages"] = sum(kept.nbytes for kept in self._kept)
        parts["step buffers"] = self.scratch.nbytes + self.aside.nbytes
        parts["reserved by calls in progress"] = self.ledger.used.device - sum(parts.values())
        return parts

    @property
    @public
    def device_row_bytes(self) -> int:
        """Device bytes of rows of cold pages, which give way to all else: 0 but where a GPU decodes in Triton."""
        return sum(kept.nbytes for kept in self._kept)

    @public
    def device_row_hits(self) -> dict[str, int]:
        """Count the keys and values that decode steps have read, those of them that the device had kept, other bytes.

        Waits for the device. Of all stores, since each began to keep rows.
        """
        names = "keys kept", "keys read", "values kept", "values read", "bytes over the bus"
        counts = [kept.counts() for kept in self._kept]
        return {name: sum(each[at] for each in counts) for at, name in enumerate(names)}

    @property
    def _kept(self) -> list[KeptRows]:
        return [cold.kept for cold in self.colds if cold.kept is not None]

    @public
    def close(self) -> None:
        """Free everything; using the pool afterwards is an error."""
        for store in self.stores:
            store.release()
        self.tidy()
        self.closed = True
