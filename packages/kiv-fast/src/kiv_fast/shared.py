"""What the stores of one pool share: budgets, buffers, the lock, and the clearing up between two calls."""

from __future__ import annotations

import weakref
from collections import deque
from dataclasses import replace
from typing import Protocol

import torch
from kiv_reference.config import KIVConfig
from kiv_reference.errors import KIVUsageError, refuse

from .cold import Cold
from .device.ahead import Ahead
from .device.gather import gather_for, reads_host_memory
from .guard import Guard
from .memory.ledger import Account, Counters, Ledger
from .memory.pinning import SlabPinning, pinning_for
from .memory.scratch import Scratch
from .ops import OpsChoice, OpsName
from .state import State
from .tiers.file_io import FileIO
from .tiers.folder import folder_for
from .tiers.resources import Resources
from .tuning import Tuning


class Owner(Protocol):
    """A store, as far as its pool knows it: what it holds, None before the first append."""

    state: State | None

    def release(self) -> None:
        """Give back everything that is held."""
        ...


class Shared:
    """The part of a `FastPool` that its stores use."""

    def __init__(
        self, config: KIVConfig, io: FileIO | None = None, tuning: Tuning | None = None, ops: OpsName = "auto"
    ) -> None:
        self._config = config
        self.tuning = tuning or Tuning()
        # What may be kept from one use to the next is no one's bytes: under a budget nothing is (SPEC 10.2).
        keeps = self.tuning if config.device_bytes is None else replace(self.tuning, kept_bytes=0)
        self.ops = OpsChoice(ops, keeps)
        self._io = io or FileIO()
        self._folder = "" if config.ram_bytes is None else folder_for(config.spill_dir)
        # Not a WeakSet: garbage collection in another thread would change it while it is gone through.
        self._references: list[weakref.ref[Owner]] = []
        self.closed = False
        self.ledger = Ledger(config)
        self.guard = Guard(self.between_calls, (self.ledger.marked, self.ledger.broken))
        self.ledger.make_room = weakref.WeakMethod(self._make_room)
        self.counters = Counters()
        self.scratch, self.aside = Scratch(Account(self.ledger)), Scratch(Account(self.ledger))
        # What pins memory for a device, and whether that reads it by itself.
        self._pinning: dict[torch.device, tuple[SlabPinning | None, bool]] = {}
        self._ahead: dict[torch.device, Ahead] = {}

    @property
    def config(self) -> KIVConfig:
        """The configuration that every store obeys."""
        return self._config

    def register(self, store: Owner) -> None:
        """Know a new store, as long as it lives."""
        self._references = [weakref.ref(one) for one in (*self.stores, store)]

    @property
    def stores(self) -> list[Owner]:
        """Those that live."""
        return [store for reference in self._references if (store := reference()) is not None]

    @property
    def states(self) -> list[State]:
        """What the stores hold that hold anything."""
        return [store.state for store in self.stores if store.state is not None]

    @property
    def colds(self) -> list[Cold]:
        """Cold pages of all stores, those of a store and its forks once."""
        return list({id(state.cold): state.cold for state in self.states}.values())

    def _make_room(self, device: int, ram: int) -> None:
        """Free this many bytes of whatever store: rows on the device; pages in RAM, and then rows there."""
        whole = [cold for cold in self.colds if cold.account not in self.ledger.broken]
        if device:
            for cold in whole:
                with cold.account.changing():
                    cold.drop_kept()
            self._clear(self.aside)
        if not ram:
            return
        for cold in whole:
            with cold.account.changing():
                cold.arena.make_room(ram)
        for cold in whole:
            if (room := cold.account.room(1)) is not None and room < ram:
                with cold.account.changing():
                    cold.arena.drop_rows()

    def check_open(self) -> None:
        """Refuse to go on after `close`.

        Raises
        ------
        KIVUsageError
            The pool is closed.
        """
        if self.closed:
            raise refuse(KIVUsageError, "a closed pool cannot be used", "a call after close()", "Make a new pool.")

    def tidy(self) -> None:
        """Free the buffers if no store holds tokens."""
        if not self.states:
            self._clear(self.scratch)
            self._clear(self.aside)

    @staticmethod
    def _clear(scratch: Scratch) -> None:
        if scratch.nbytes:
            with scratch.account.changing():
                scratch.clear()

    def between_calls(self, dead: deque[State]) -> None:
        """Note which change was interrupted, and release what dead stores held."""
        ledger = self.ledger
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
        """Set what is used to what living accounts hold; what is broken and dropped is nobody's any more."""
        accounts = {state.cold.account for state in [*self.states, *dead]}
        for scratch in (self.scratch, self.aside):
            scratch.recount()
            accounts.add(scratch.account)
        self.ledger.recount(accounts)

    def is_broken(self, state: State) -> bool:
        """Tell whether a change of a store or of one of its forks was interrupted."""
        return state.cold.account in self.ledger.broken

    def resources(self, device: torch.device) -> Resources:
        """Gather what a new store on a device has from the pool, with an account of its own."""
        if device not in self._pinning:
            pinning = pinning_for(device)
            self._pinning[device] = pinning, reads_host_memory(device, pinning)
        pinning, direct = self._pinning[device]
        if self.config.ram_bytes is not None and self.config.spill_dir is not None:
            folder_for(self._folder)  # it may be gone by now
        gather = gather_for(device, direct)
        if gather.transfer.streams is not None and device not in self._ahead:
            self._ahead[device] = Ahead(gather.transfer.streams, self.scratch, device)
        return Resources(
            config=self.config,
            tuning=self.tuning,
            counters=self.counters,
            account=Account(self.ledger),
            scratch=self.scratch,
            aside=self.aside,
            ops=self.ops,
            folder=self._folder,
            io=self._io,
            pinning=pinning,
            gather=gather,
            stores=lambda: len(self.stores),
            ahead=self._ahead.get(device),
        )
