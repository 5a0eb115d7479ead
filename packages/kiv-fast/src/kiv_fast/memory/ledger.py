"""Who holds which bytes of a pool, and how a call is sure of those it needs (SPEC 10.2).

The `Ledger` has the limits and what is used; each store, with its forks, takes from it through one `Account`. Bytes are
held by what lies in them: the window of a store, its pages, the buffers of a step. A call takes all it may need before
it changes anything: the window and the buffers at the size that they will have, and a `Reservation` for the pages that
will leave the window. Each page that is written uses up a part of it; a page that comes back, since the call failed,
gives it back; what is left when the call is over is released.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass

from kiv_reference.config import KIVConfig
from kiv_reference.errors import KIVBudgetError, refuse
from kiv_reference.report import TierBytes

from ..interrupts import Change

REMEDIES = {
    "device_bytes": "Raise device_bytes, lower hot_tokens, or prefill in smaller chunks.",
    "ram_bytes": "Raise ram_bytes.",
    "disk_bytes": "Raise disk_bytes or ram_bytes, or store fewer tokens.",
}


class Ledger:
    """The budgets of a pool, and the bytes taken by all its stores. Each takes them through an `Account`."""

    def __init__(self, config: KIVConfig) -> None:
        self._limits = (config.device_bytes, config.ram_bytes, config.disk_bytes)
        self._used = [0, 0, 0]
        self.rows = 0  # bytes of RAM, of those used, for rows that were read from disk
        # Frees so many bytes of the device and of RAM, as far as stores hold what they can do without, or can move.
        self.make_room: weakref.WeakMethod[Callable[[int, int], None]] | None = None
        self.marked: set[Account] = set()  # in a change
        self.broken: set[Account] = set()  # whose change was interrupted

    def recount(self, held: set[Account]) -> None:
        """Set what is taken to what these accounts hold, as nobody else does."""
        self.broken.intersection_update(held)
        self._used = [sum(account.used[tier] for account in held) for tier in range(3)]
        self.rows = sum(account.rows for account in held)

    @property
    def used(self) -> TierBytes:
        """Bytes taken and not given back."""
        return TierBytes(*self._used)

    def limit(self, tier: int) -> int | None:
        """Return the budget of a tier, if it has one."""
        return self._limits[tier]

    def room(self, tier: int) -> int | None:
        """Return the bytes left in tier 0 (device), 1 (RAM) or 2 (disk); None without a limit."""
        limit = self._limits[tier]
        return None if limit is None else limit - self._used[tier]

    def take(self, more: tuple[int, int, int]) -> None:
        """Take bytes of each tier, or give them back where they are negative.

        Raises
        ------
        KIVBudgetError
            If they do not fit, even after pages went from RAM to disk. Nothing is taken then.
        """
        rooms = self.room(0), self.room(1)
        short = [0 if room is None or n <= max(room, 0) else n for n, room in zip(more[:2], rooms, strict=True)]
        if any(short) and self.make_room is not None and (make_room := self.make_room()):
            make_room(*short)
        for name, used, add, limit in zip(REMEDIES, self._used, more, self._limits, strict=True):
            if limit is not None and add > 0 and used + add > limit:
                rule = f"the cache must fit into {name}={limit} (SPEC 10.2)"
                raise refuse(KIVBudgetError, rule, f"a need of {used + add} bytes", REMEDIES[name])
        for tier, add in enumerate(more):
            self._used[tier] += add
            assert self._used[tier] >= 0, "bytes were returned twice"


class Account:
    """What a store and its forks have taken from a ledger, and whether they are being changed."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self.used = ledger, [0, 0, 0]
        self.rows = 0  # as in the ledger

    def changing(self) -> Change[Account]:
        """Mark a change, as long as it lasts."""
        return Change(self._ledger.marked, self)

    @property
    def marked(self) -> bool:
        """Whether a change is going on, or was broken off."""
        return self in self._ledger.marked

    def room(self, tier: int) -> int | None:
        """Return the bytes left (`Ledger.room`)."""
        return self._ledger.room(tier)

    def take(self, device: int = 0, ram: int = 0, disk: int = 0) -> None:
        """Take bytes, or raise and take none (`Ledger.take`)."""
        more = device, ram, disk
        self._ledger.take(more)
        for tier, add in enumerate(more):
            self.used[tier] += add

    def give(self, device: int = 0, ram: int = 0, disk: int = 0) -> None:
        """Give bytes back."""
        self.take(-device, -ram, -disk)

    def room_for_rows(self, share: int) -> int:
        """Return the bytes left for rows read from disk: of all, one part in `share` of a RAM budget."""
        ram = self._ledger.limit(1) if self._ledger.limit(2) is None else None
        return 0 if ram is None else ram // share - self._ledger.rows

    def take_rows(self, nbytes: int) -> None:
        """Take bytes of RAM for rows read from disk, or give them back (`Ledger.take`)."""
        self.take(ram=nbytes)
        self.rows += nbytes
        self._ledger.rows += nbytes


class Holding:
    """Bytes that one part of a store holds, of an account: its window, the buffers of its steps."""

    def __init__(self, account: Account) -> None:
        self._account, self.bytes = account, TierBytes(0, 0, 0)

    def resize(self, device: int = 0, ram: int = 0) -> None:
        """Hold this many bytes in all, or raise and hold what was held (`Ledger.take`)."""
        if (device, ram) == self.bytes[:2]:
            return
        self._account.take(device - self.bytes.device, ram - self.bytes.ram)
        self.bytes = TierBytes(device, ram, 0)


@dataclass(eq=False)
class Reservation:
    """Room for pages to come: for each its index, on the device and in RAM, and a place in one of two tiers.

    Attributes
    ----------
    in_ram : int
        Pages that have a place in RAM.
    on_disk : int
        Pages that have one on disk, or for each of which another page will go there.
    saved : int
        Pages that need none, since they are read where they were saved.
    """

    in_ram: int = 0
    on_disk: int = 0
    saved: int = 0

    @property
    def pages(self) -> int:
        """Pages to come."""
        return self.in_ram + self.on_disk + self.saved


@dataclass
class Counters:
    """What the stores of a pool did so far: integers, kept off the hot path.

    Attributes
    ----------
    key_bytes_gathered, value_bytes_gathered : int
        Cold bytes read for retrieval, from RAM or disk.
    streamed_bytes : int
        Cold bytes read for exact attention.
    disk_bytes_read : int
        Of them, bytes read from disk.
    saved_bytes_read : int
        Bytes read of pages that were restored (SPEC 9.8).
    """

    key_bytes_gathered: int = 0
    value_bytes_gathered: int = 0
    streamed_bytes: int = 0
    disk_bytes_read: int = 0
    saved_bytes_read: int = 0
