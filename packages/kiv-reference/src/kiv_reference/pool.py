"""`ReferencePool`: one cache made of plain stores that share its budgets."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, NoReturn, SupportsIndex

from .budget import check_budget
from .errors import KIVUsageError, refuse
from .report import TierBytes
from .store import ReferenceStore

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .config import KIVConfig


class ReferencePool:
    """A cache whose stores do what SPEC.md says, plainly. All of it lives in the memory of the keys' device."""

    def __init__(self, config: KIVConfig) -> None:
        self._config = config
        # Not a WeakSet: garbage collection in another thread would change it while it is gone through.
        self._references: list[weakref.ref[ReferenceStore]] = []
        self._closed = False

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Refuse to be copied or pickled: a copy would give back what it does not own (SPEC 9.4)."""
        raise refuse(
            KIVUsageError,
            "a pool cannot be copied or pickled",
            "a pool",
            "Make a new pool and append to its stores again.",
        )

    @property
    def config(self) -> KIVConfig:
        """The configuration that every store obeys."""
        return self._config

    def layer_store(self) -> ReferenceStore:
        """Return a new, empty store for one attention layer."""
        self.check_open()
        store = ReferenceStore(self)
        self._references.append(weakref.ref(store, self._references.remove))
        return store

    @property
    def _stores(self) -> list[ReferenceStore]:
        return [store for reference in list(self._references) if (store := reference()) is not None]

    def memory(self) -> TierBytes:
        """Return bytes held in each tier by all stores (SPEC 10.3)."""
        return _total(store.memory() for store in self._stores)

    def close(self) -> None:
        """Free every store; using the pool afterwards is an error."""
        for store in self._stores:
            store.reset()
        self._closed = True

    def check_open(self) -> None:
        """Refuse to go on after `close`.

        Raises
        ------
        KIVUsageError
            The pool is closed.
        """
        if self._closed:
            raise refuse(KIVUsageError, "a closed pool cannot be used", "a call after close()", "Make a new pool.")

    def check_room(self, store: ReferenceStore, needed: TierBytes) -> None:
        """Refuse if `store`, grown to `needed`, would break a budget together with the others (SPEC 10.2).

        Raises
        ------
        KIVBudgetError
            They do not fit.
        """
        others = _total(other.memory() for other in self._stores if other is not store)
        check_budget(self._config, _total((others, needed)))


def _total(parts: Iterable[TierBytes]) -> TierBytes:
    device, ram, disk = 0, 0, 0
    for part in parts:
        device, ram, disk = device + part.device, ram + part.ram, disk + part.disk
    return TierBytes(device, ram, disk)
