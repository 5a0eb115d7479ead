"""Which KIV layer do these keys and values belong to? The one place that answers.

The answer is identity of both tensor objects with those that the layer's last `update` returned. Positions of modules,
shapes and contents are all ambiguous in some model. Of a model that changes keys and values after the update it is the
layer that waits for its attention call, or just had one, if an adapter explains the change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..cache.adapters import Adapted, adapt
from ..cache.layer import KIVLayerMixin
from ..guards.active import active_handshake
from ..guards.returned import owner_of

if TYPE_CHECKING:
    import torch


def resolve(key: torch.Tensor, value: torch.Tensor) -> KIVLayerMixin | None:
    """Return the layer whose last update returned exactly `key` and `value`, or None."""
    layer = owner_of(key, value)
    if not isinstance(layer, KIVLayerMixin):
        return None
    # A layer with an adapter keeps another form of the tokens: what was not adapted does not belong to it.
    return layer if layer.adapter is None and layer.returned_last(key) else None


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
    assert isinstance(layer, KIVLayerMixin)
    # Tokens that are in the store already came as they were: the change would concern only the new ones.
    if states is None or (layer.adapter is None and not first):
        return None
    found = adapt(layer.adapter, module, states, key, value)
    if found is None:
        return None
    layer.adapter, adapted = found
    handshake.adapted = (layer, states)
    return layer, adapted
