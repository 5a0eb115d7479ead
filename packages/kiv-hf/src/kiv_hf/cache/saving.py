"""From a cache to what is saved of it, and back: KIV's stores, and whatever transformers' own layers hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from kiv_reference.errors import KIVCorruptError, KIVError, KIVMismatchError, KIVUnsupportedError, refuse

from ..contexts.saved import SavedCache, SavedLayer
from .adapters import ADAPTERS
from .hybrid import KIV_STATE
from .layer import KIVLayerMixin

if TYPE_CHECKING:
    from collections.abc import Callable

    from kiv_reference.contract import StorePool
    from transformers import PreTrainedModel

    from ..contexts.saved import State
    from ..rope.watch import Watch

ADAPTER, BATCH = "kiv.adapter", "kiv.batch"
"""What a KIV layer knows beside its store: how the model changes keys and values, and how many sequences there are."""

PADDING, HELD = "rope.padding", "rope.held"
"""What a cache knows of rotary factors (`Watch`)."""

PLAIN = (bool, int, float, str, torch.dtype, torch.device)


class WholeCache(Protocol):
    """What is saved of a cache, and filled in one that was loaded."""

    layers: list[Any]
    layer_class_to_replicate: Any

    @property
    def pool(self) -> StorePool:
        """The pool that made the layers' stores."""
        ...

    @property
    def rope(self) -> Watch:
        """Which rotary factors the tokens have, where they depend on the length of the text."""
        ...

    def lengths(self) -> set[int]:
        """Return how many tokens the layers hold."""
        ...


def saved_of(cache: WholeCache, provenance: dict[str, str]) -> SavedCache:
    """Return what is to be saved of a whole cache.

    Raises
    ------
    KIVUnsupportedError
        A layer holds something that cannot be saved; it is named.
    """
    layers = [_saved_layer(number, layer) for number, layer in enumerate(cache.layers)]
    rope: dict[int | str, State] = dict(enumerate(cache.rope.held))
    return SavedCache(
        config=cache.pool.config,
        layers=layers,
        tokens=max(cache.lengths(), default=0),
        provenance=provenance,
        state={PADDING: cache.rope.padding, HELD: rope},
    )


def _saved_layer(number: int, layer: Any) -> SavedLayer:
    own, fields = isinstance(layer, KIVLayerMixin), cast("dict[str, object]", vars(layer))
    state: dict[str, State] = {}
    for name, value in fields.items():
        if own and name in KIV_STATE:
            continue
        if not _can_be_saved(value):
            raise refuse(
                KIVUnsupportedError,
                "What a layer of a cache holds must be tensors, numbers, truth values, text, and dictionaries of these,"
                " to be saved",
                f"{type(value).__name__} as {name!r} of layer {number}, a {type(layer).__name__}",
                "Keep the text, and feed it again.",
            )
        state[name] = cast("State", value)
    if not isinstance(layer, KIVLayerMixin):
        return SavedLayer(type(layer).__name__, None, state)
    state[ADAPTER] = None if layer.adapter is None else layer.adapter.__name__
    state[BATCH] = layer.batch
    return SavedLayer(type(layer).__name__, layer.store.snapshot(), state)


def _can_be_saved(value: object) -> bool:
    if isinstance(value, dict):
        pairs = cast("dict[object, object]", value).items()
        return all(type(key) in (int, str) and _can_be_saved(item) for key, item in pairs)
    return value is None or isinstance(value, PLAIN) or type(value) in (torch.Tensor, torch.nn.Parameter)


def fill(cache: WholeCache, saved: SavedCache, device_of: Callable[[int], torch.device]) -> None:
    """Give a new cache of the same model what was saved.

    Raises
    ------
    KIVMismatchError
        The cache has other layers.
    KIVUsageError, KIVShapeError, KIVBudgetError, KIVCorruptError, KIVStorageError
        As `LayerStore.restore`.
    """
    while len(cache.layers) < len(saved.layers) and cache.layer_class_to_replicate is not None:
        cache.layers.append(cache.layer_class_to_replicate())
    here, there = ([type(layer).__name__ for layer in cache.layers], [layer.kind for layer in saved.layers])
    if here != there:
        rule = "A saved context serves the model that filled it, whose cache has the same layers"
        raise refuse(KIVMismatchError, rule, f"{there} in the context, {here} in this cache", "Load that model.")
    for number, (layer, was) in enumerate(zip(cache.layers, saved.layers, strict=True)):
        _fill(number, layer, was, device_of(number))
    padding, held = saved.state.get(PADDING), saved.state.get(HELD)
    factors = held.values() if isinstance(held, dict) else (None,)
    if not isinstance(padding, int) or not all(isinstance(factor, int) for factor in factors):
        raise _not_saved_by_kiv("the cache", f"{PADDING}={padding!r}, {HELD}={held!r}")
    cache.rope.padding, cache.rope.held = padding, tuple(cast("list[int]", list(factors)))


def _not_saved_by_kiv(who: str, got: str) -> KIVError:
    rule = f"what a context says of {who} must be what KIV saves"
    return refuse(KIVCorruptError, rule, got, "Restore it from a copy, or read the text again.")


def _fill(number: int, layer: object, saved: SavedLayer, device: torch.device) -> None:
    state = dict(saved.state)
    if isinstance(layer, KIVLayerMixin):
        name, batch = state.pop(ADAPTER, 0), state.pop(BATCH, None)
        known = {None: None, **{adapter.__name__: adapter for adapter in ADAPTERS}}
        if not (name is None or isinstance(name, str)) or name not in known or not isinstance(batch, int):
            raise _not_saved_by_kiv(f"layer {number}", f"{ADAPTER}={name!r}, {BATCH}={batch!r}")
        layer.adapter, layer.batch = known[name], batch
        if saved.snapshot is not None:
            layer.store.restore(saved.snapshot)
    for name, value in state.items():
        attribute: object = getattr(type(layer), name, None)
        if name.startswith("__") or callable(attribute):
            raise _not_saved_by_kiv(f"layer {number}", f"{name!r} of a {saved.kind}")
        setattr(layer, name, device if isinstance(value, torch.device) else value)


def devices_of(model: PreTrainedModel) -> Callable[[int], torch.device]:
    """Return on which device each layer of a model computes, by its number in the cache."""
    found: dict[int, torch.device] = {}
    for module in model.modules():
        number = getattr(module, "layer_idx", None)
        if isinstance(number, int) and number not in found:
            devices = [parameter.device for parameter in module.parameters() if not parameter.is_meta]
            if devices:
                found[number] = devices[0]
    return lambda number: found.get(number, model.device)
