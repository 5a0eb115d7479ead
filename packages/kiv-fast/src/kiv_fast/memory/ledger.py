"""The byte budgets of a pool (SPEC 10.2) and the counts of what its steps did."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, fields

from kiv_reference.config import KIVConfig
from kiv_reference.errors import KIVBudgetError, refuse
from kiv_reference.report import TierBytes

from ..interrupts import Change

REMEDIES = {
    "device_bytes": "Raise device_bytes, lower hot_tokens, or prefill in smaller chunks.",
    "ram_bytes": "Raise ram_bytes.",
    "disk_bytes": "Raise disk_bytes or ram_bytes, or store fewer tokens.",
}

NOTHING = TierBytes(0, 0, 0)


class Ledger:
    """Bytes taken from each tier by all stores of one pool. `take` refuses what would break a budget."""

    def __init__(self, config: KIVConfig) -> None:
        self._limits = (config.device_bytes, config.ram_bytes, config.disk_bytes)
        self._used = [0, 0, 0]
        # Moves what RAM holds to disk, until so many bytes are free.
        self.give_way: weakref.WeakMethod[Callable[[int], None]] | None = None
        self.marked: set[Account] = set()  # in a change
        self.broken: set[Account] = set()  # whose change was interrupted

    def account(self) -> Account:
        """An account for one store and its forks."""
        return Account(self)

    def recount(self, held: set[Account]) -> None:
        """Set what is taken to what these accounts hold, as nobody else does."""
        self.broken &= held
        self._used = [sum(account.used[tier] for account in held) for tier in range(3)]

    @property
    def used(self) -> TierBytes:
        """Bytes taken and not given back."""
        return TierBytes(*self._used)

    def room(self, tier: int) -> int | None:
        """Bytes left in tier 0 (device), 1 (RAM) or 2 (disk); None without a limit."""
        limit = self._limits[tier]
        return None if limit is None else limit - self._used[tier]

    def check(self, device: int = 0, ram: int = 0, disk: int = 0) -> None:
        """Refuse if so many bytes more do not fit (SPEC 10.2)."""
        room = self.room(1)
        short = room is not None and ram > max(room, 0)
        if short and self.give_way is not None and (make_room := self.give_way()):
            make_room(ram)
        for name, used, more, limit in zip(REMEDIES, self._used, (device, ram, disk), self._limits, strict=True):
            if limit is not None and more > 0 and used + more > limit:
                rule = f"the cache must fit into {name}={limit} (SPEC 10.2)"
                raise refuse(KIVBudgetError, rule, f"a need of {used + more} bytes", REMEDIES[name])

    def take(self, device: int = 0, ram: int = 0, disk: int = 0) -> None:
        """Book bytes, or refuse and book nothing."""
        self.check(device, ram, disk)
        self.give(-device, -ram, -disk)

    def give(self, device: int = 0, ram: int = 0, disk: int = 0) -> None:
        """Return bytes."""
        for tier, less in enumerate((device, ram, disk)):
            self._used[tier] -= less
            assert self._used[tier] >= 0, "bytes were returned twice"


class Account:
    """What a store and its forks have taken from a ledger, and whether they are being changed."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self.used = ledger, [0, 0, 0]

    def changing(self) -> Change[Account]:
        """Mark a change, as long as it lasts."""
        return Change(self._ledger.marked, self)

    @property
    def marked(self) -> bool:
        """Whether a change is going on, or was broken off."""
        return self in self._ledger.marked

    def room(self, tier: int) -> int | None:
        """Bytes left (`Ledger.room`)."""
        return self._ledger.room(tier)

    def take(self, device: int = 0, ram: int = 0, disk: int = 0) -> None:
        """Book bytes, or refuse and book nothing."""
        self._ledger.check(device, ram, disk)
        self.give(-device, -ram, -disk)

    def give(self, device: int = 0, ram: int = 0, disk: int = 0) -> None:
        """Return bytes."""
        self._ledger.give(device, ram, disk)
        for tier, less in enumerate((device, ram, disk)):
            self.used[tier] -= less


class Booking:
    """What one holder has booked on the device and in RAM.

    Attributes
    ----------
    held : TierBytes
    """

    def __init__(self, ledger: Account) -> None:
        self._ledger, self.held = ledger, NOTHING

    def book(self, held: TierBytes) -> None:
        """Book so many bytes in all, or refuse."""
        self._ledger.take(held.device - self.held.device, held.ram - self.held.ram)
        self.held = held


@dataclass
class Counters:
    """What the stores of a pool did so far: integers, kept off the hot path.

    Attributes
    ----------
    key_bytes_gathered, value_bytes_gathered : int
        Cold bytes read for retrieval, from RAM or disk.
    streamed_bytes : int
        Cold bytes read for exact attention.
    evicted_pages : int
        Pages that left the hot window.
    disk_bytes_written, disk_bytes_read : int
        Traffic of the disk tier.
    """

    key_bytes_gathered: int = 0
    value_bytes_gathered: int = 0
    streamed_bytes: int = 0
    evicted_pages: int = 0
    disk_bytes_written: int = 0
    disk_bytes_read: int = 0

    def reset(self) -> None:
        """Start again from zero."""
        for field in fields(self):
            setattr(self, field.name, 0)
