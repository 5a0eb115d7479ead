"""Back to the tokens before a forward pass that broke off: all layers together, or none (SPEC 10.4, of the cache)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from kiv_reference.errors import KIVUnsupportedError, refuse
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from .layer import KIVLayerMixin

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    import torch


def go_back(layers: Sequence[Any], length: int, no_way_back: Collection[int], not_text: Collection[int] = ()) -> None:
    """Drop what waits for its attention call, and every token from position `length` on.

    Parameters
    ----------
    layers : all layers of the cache
    length : int
        Tokens that each layer holds, or these and the last ones it got.
    no_way_back : indices of layers
        Layers that the broken pass changed in a way that cannot be undone.
    not_text : indices of layers
        Layers of a plain type that hold something else than the text.

    Raises
    ------
    KIVUnsupportedError
        A layer cannot go back; nothing has changed.
    """
    if length == 0:
        for layer in layers:
            layer.reset()
        return
    ways: list[Callable[[], None]] = []
    for i, layer in enumerate(layers):
        way = None if i in no_way_back else _nothing if i in not_text else _way_back(layer, length)
        if way is None:
            raise refuse(
                KIVUnsupportedError,
                f"After a forward pass that broke off, every layer must go back to {length} tokens",
                f"layer {i}, a {type(layer).__name__}, which does not keep what it had",
                "Call cache.reset() and feed the text again, or use a new cache.",
            )
        ways.append(way)
    for way in ways:
        way()


def _way_back(layer: Any, length: int) -> Callable[[], None] | None:
    """Return what brings `layer` to `length` tokens, None if nothing can."""
    if isinstance(layer, KIVLayerMixin):
        return partial(layer.go_back, length) if layer.store.length >= length or not layer.is_initialized else None
    if type(layer) is DynamicSlidingWindowLayer and layer.is_initialized and layer.cumulative_length != length:
        return _window_back(layer, layer.cumulative_length - length)
    if type(layer) is DynamicLayer and layer.get_seq_length() > length:
        return partial(layer.crop, length - layer.get_seq_length())
    return _nothing


def _nothing() -> None:
    """Do nothing: the broken pass did not reach the layer."""


def _window_back(layer: DynamicSlidingWindowLayer, tokens: int) -> Callable[[], None] | None:
    """Return what takes the last `tokens` tokens from a sliding window, None if the older ones are gone.

    The window is cut out of the tensor that it was joined in with the new tokens, so what it held before is still
    there, in front.
    """
    before = layer.cumulative_length - tokens
    if not layer.record_past:
        before = min(before, layer.sliding_window - 1)
    keys, values = (_front(states, before, tokens) for states in (layer.keys, layer.values))
    if tokens < 0 or keys is None or values is None:
        return None

    def back() -> None:
        # Of another dtype the new tokens may have widened the older ones; narrowed again, they are what they were.
        layer.keys, layer.values = keys.to(layer.dtype), values.to(layer.dtype)
        layer.cumulative_length -= tokens

    return back


def _front(states: torch.Tensor | None, before: int, tokens: int) -> torch.Tensor | None:
    """Return the first `before` of the ``before + tokens`` tokens that `states` [B, H, n, D] is the end of."""
    if states is None:
        return None
    batch, heads, kept, width = states.shape
    total = before + tokens
    if kept == total:
        return states[:, :, :before]
    strides = (heads * total * width, total * width, width, 1)
    same = all(size == 1 or a == b for size, a, b in zip(states.shape, states.stride(), strides, strict=True))
    whole = states.untyped_storage().nbytes() == batch * heads * total * width * states.element_size()
    if not same or not whole or states.storage_offset() != (total - kept) * width:
        return None
    return states.as_strided((batch, heads, before, width), strides, 0).clone()
