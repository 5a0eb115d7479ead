"""Which KIV layer do these keys and values belong to? The one place that answers.

The answer is identity of both tensor objects with those that the layer's last `update` returned. Positions of modules,
shapes and contents are all ambiguous in some model. Support for models that adapt keys and values after the update
belongs here: a rule that recognises the adapted tensors and says how to undo the adaptation.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

    from .layer import KIVLayerMixin


class _Entry(NamedTuple):
    key: weakref.ref[torch.Tensor]
    value: weakref.ref[torch.Tensor]
    layer: weakref.ref[KIVLayerMixin]


# By id of the key tensor. An id may be given to a new object after the old one died, so the weak references decide.
_entries: dict[int, _Entry] = {}


def register(key: torch.Tensor, value: torch.Tensor, layer: KIVLayerMixin) -> None:
    """Remember that `layer` returned `key` and `value`; both are fresh tensor objects and held weakly."""
    number = id(key)

    def drop(dead: weakref.ref[torch.Tensor]) -> None:
        entry = _entries.get(number)
        if entry is not None and entry.key is dead:
            del _entries[number]

    _entries[number] = _Entry(weakref.ref(key, drop), weakref.ref(value), weakref.ref(layer))


def resolve(key: torch.Tensor, value: torch.Tensor) -> KIVLayerMixin | None:
    """Return the layer whose last update returned exactly `key` and `value`, or None."""
    entry = _entries.get(id(key))
    if entry is None or entry.key() is not key or entry.value() is not value:
        return None
    layer = entry.layer()
    return layer if layer is not None and layer.returned_last(key) else None
