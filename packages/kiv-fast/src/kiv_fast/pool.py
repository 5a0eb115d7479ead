"""`FastPool`: one cache, whose stores share its budgets."""

from __future__ import annotations

import weakref
from collections import deque
from typing import NoReturn, SupportsIndex

import torch
from kiv_reference.config import KIVConfig
from kiv_reference.errors import KIVUsageError, refuse
from kiv_reference.report import TierBytes

from .cold import Cold
from .device.gather import Reach, reach_for, reads_host_memory
from .guard import Guard, locked
from .memory.ledger import Account, Counters, Ledger
from .memory.pinning import Pinning, pinning_for
from .memory.scratch import Scratch
from .ops import OpsChoice, OpsName
from .shape import Shape
from .state import State
from .store import FastStore
from .tiers.file_io import FileIO
from .tiers.ram import RamArena
from .tiers.segments import Segments, folder_for
from .tiers.staging import Staging
from .tiers.tiered import Arena, TieredArena
from .tuning import Tuning


class FastPool:
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
    ops : "auto", "torch" or "cpu"
        By what a step is computed: "cpu" is compiled, "auto" takes it where it can serve.

    Attributes
    ----------
    counters : Counters
        What the stores did so far.
    ledger : Ledger
        The budgets.
    guard : Guard
        The lock.
    """

    def __init__(
        self, config: KIVConfig, io: FileIO | None = None, tuning: Tuning | None = None, ops: OpsName = "auto"
    ) -> None:
        self._config = config
        self.tuning = tuning or Tuning()
        self._ops = OpsChoice(ops, self.tuning)
        self._io = io or FileIO()
        self._folder = "" if config.ram_bytes is None else folder_for(config.spill_dir)
        self.guard = Guard(self)
        # Not a WeakSet: garbage collection in another thread would change it while it is gone through.
        self._references: list[weakref.ref[FastStore]] = []
        self._closed = False
        self.ledger = Ledger(config)
        self.ledger.give_way = weakref.WeakMethod(self._make_room)
        self.counters = Counters()
        self.scratch = Scratch(self.ledger.account())
        self._staging = Staging()
        self._pinning: dict[torch.device, tuple[Pinning, bool]] = {}  # and whether a device reads what is pinned

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Refuse to be copied or pickled: a copy would give back what it does not own (SPEC 9.4)."""
        raise refuse(
            KIVUsageError,
            "a pool cannot be copied, pickled or saved",
            "a pool",
            "Make a new pool and append to its stores again.",
        )

    @property
    def config(self) -> KIVConfig:
        """The configuration that every store obeys."""
        return self._config

    @locked
    def layer_store(self) -> FastStore:
        """A new, empty store for one attention layer."""
        self.check_open()
        return self.new_store()

    def new_store(self) -> FastStore:
        """`layer_store` for a call that has the lock."""
        store = FastStore(self)
        living = [reference for reference in self._references if reference() is not None]
        self._references = [*living, weakref.ref(store)]
        return store

    @property
    def _stores(self) -> list[FastStore]:
        return [store for reference in self._references if (store := reference()) is not None]

    @locked
    def memory(self) -> TierBytes:
        """Bytes held in each tier (SPEC 10.3)."""
        return self.ledger.used

    @locked
    def device_breakdown(self) -> dict[str, int]:
        """Device bytes by what they are for; together, `memory().device`."""
        states = [store.state for store in self._stores if store.state is not None]
        parts = {"sinks, hot tokens, validity": sum(state.near_bytes for state in states)}
        for cold in {id(state.cold): state.cold for state in states}.values():
            parts["index"] = parts.get("index", 0) + cold.index_bytes
        parts["step buffers"] = self.scratch.nbytes
        parts["promised to calls in progress"] = self.ledger.used.device - sum(parts.values())
        return parts

    @locked
    def close(self) -> None:
        """Free everything; using the pool afterwards is an error."""
        for store in self._stores:
            store.release()
        self.tidy()
        self._closed = True

    def _make_room(self, ram: int) -> None:
        """Free RAM that pages can leave, in whatever store."""
        for state in [store.state for store in self._stores if store.state is not None]:
            if not self.is_broken(state):
                with state.cold.account.changing():
                    state.cold.arena.give_way(ram)

    def check_open(self) -> None:
        """Refuse to go on after `close`."""
        if self._closed:
            raise refuse(KIVUsageError, "a closed pool cannot be used", "a call after close()", "Make a new pool.")

    def tidy(self) -> None:
        """Without a store that holds tokens the buffers go too."""
        if self.scratch.nbytes and not any(store.state is not None for store in self._stores):
            with self.scratch.account.changing():
                self.scratch.clear()

    def between_calls(self, dead: deque[State]) -> None:
        """Note which change was interrupted, and release what dead stores held."""
        ledger = self.ledger
        if not (ledger.marked or ledger.broken or dead):
            return
        # Of a change that is still marked, nothing is known but that it did not end.
        ledger.broken |= ledger.marked
        ledger.marked.clear()
        self._recount(dead)
        while dead:
            state = dead[0]
            if self.is_broken(state):
                dead.popleft()
                continue
            with state.cold.account.changing():
                state.release()
                dead.popleft()
        self._recount(dead)
        self.tidy()

    def _recount(self, dead: deque[State]) -> None:
        """Set what is booked to what living accounts hold; what is broken and dropped is nobody's any more."""
        self.scratch.recount()
        states = [*[store.state for store in self._stores if store.state is not None], *dead]
        self.ledger.recount({*[state.cold.account for state in states], self.scratch.account})

    def is_broken(self, state: State) -> bool:
        """Whether a change of a store or of one of its forks was interrupted."""
        return state.cold.account in self.ledger.broken

    def cold(self, shape: Shape) -> Cold:
        """The cold pages of a new store of this shape."""
        if shape.device not in self._pinning:
            pinning = pinning_for(shape.device)
            self._pinning[shape.device] = pinning, reads_host_memory(shape.device, pinning)
        pinning, direct = self._pinning[shape.device]
        reach = reach_for(shape.device, direct)
        account, transfer = self.ledger.account(), reach.transfer
        arena = self._arena(shape, account, pinning, reach)
        ops = self._ops.of(shape)
        return Cold(shape, self._config, arena, self.scratch, account, self.counters, transfer, self.tuning, ops)

    def _arena(self, shape: Shape, account: Account, pinning: Pinning, reach: Reach) -> Arena:
        config = self._config
        if config.ram_bytes is None:
            return RamArena(shape, config.page_tokens, account, self.scratch, pinning, reach)
        if config.spill_dir is not None:
            folder_for(self._folder)  # it may be gone by now
        place = self._folder, self._io
        segments = Segments(shape, config.page_tokens, *place, account, self.counters, self.tuning)
        return TieredArena(shape, config.page_tokens, account, segments, self._staging, reach.transfer)
