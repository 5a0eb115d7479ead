"""Which KIV layer do these keys and values belong to? The one place that answers.

The answer is identity of both tensor objects with those that the layer's last `update` returned. Positions of modules,
shapes and contents are all ambiguous in some model. Of a model that changes keys and values after the update it is the
layer that waits for its attention call, or just had one, if an adapter explains the change.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, NamedTuple

from ..cache.adapters import Adapted, adapt
from ..guards.active import active_handshake

if TYPE_CHECKING:
    import torch

    from ..cache.layer import KIVLayerMixin


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
    # A layer with an adapter keeps another form of the tokens: what was not adapted does not belong to it.
    return layer if layer is not None and layer.returned_last(key) and layer.adapter is None else None


def resolve_adapted(
    module: torch.nn.Module, key: torch.Tensor, value: torch.Tensor
) -> tuple[KIVLayerMixin, Adapted] | None:
    """Return the layer whose last update gave what `key` and `value` were made from, and how; None if there is none."""
    handshake = active_handshake()
    if handshake is None:
        return None
    layer = handshake.staged
    if layer is not None:
        states = layer.staged
        first = layer.store.length == 0
    elif handshake.adapted is not None:
        (layer, states), first = handshake.adapted, False
    else:
        return None
    # Tokens that are in the store already came as they were: the change would concern only the new ones.
    if states is None or (layer.adapter is None and not first):
        return None
    found = adapt(layer.adapter, module, states, key, value)
    if found is None:
        return None
    layer.adapter, adapted = found
    handshake.adapted = (layer, states)
    return layer, adapted
