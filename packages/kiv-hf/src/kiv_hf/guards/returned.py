"""Who returned these two tensors? Known by identity: positions, shapes and contents are all ambiguous in some model."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class _Entry(NamedTuple):
    key: weakref.ref[torch.Tensor]
    value: weakref.ref[torch.Tensor]
    owner: weakref.ref[object]


# By id of the key tensor. An id may be given to a new object after the old one died, so the weak references decide.
_entries: dict[int, _Entry] = {}


def register(key: torch.Tensor, value: torch.Tensor, owner: object) -> None:
    """Remember that `owner` returned `key` and `value`; both are fresh tensor objects and held weakly, as it is."""
    number = id(key)

    def drop(dead: weakref.ref[torch.Tensor]) -> None:
        entry = _entries.get(number)
        if entry is not None and entry.key is dead:
            del _entries[number]

    _entries[number] = _Entry(weakref.ref(key, drop), weakref.ref(value), weakref.ref(owner))


def owner_of(key: torch.Tensor, value: torch.Tensor) -> object | None:
    """Return who returned exactly `key` and `value`, None if nobody did or who did is gone."""
    entry = _entries.get(id(key))
    if entry is None or entry.key() is not key or entry.value() is not value:
        return None
    return entry.owner()
