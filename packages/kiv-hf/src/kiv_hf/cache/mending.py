"""A cache whose layers go on together: a pass that a layer refused, or that broke off, is undone (SPEC 10.4)."""

from __future__ import annotations

import contextlib
import weakref
from typing import TYPE_CHECKING, Any

import torch
from kiv_reference.errors import KIVError
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)

from ..guards.eager import outside_graphs
from ..guards.running import calling_config, calling_model
from .layer import KIVLayerMixin
from .linear import LinearStates
from .stages import TOKEN_LAYERS
from .undo import go_back

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..guards.handshake import Handshake
    from ..guards.progress import Progress


class MendingCache(LinearStates):
    """What `KIVCache` does so that after an error every layer holds the same tokens, or says that it does not.

    Attributes
    ----------
    pipeline : bool
        Whether transformers divided the model's layers between processes.
    linear_layers : frozenset of int
        Layers with a linear state: every pass changes them all. Empty where other processes run some.
    unfilled : bool
        No forward pass has given the cache anything yet.
    """

    handshake: Handshake
    unfilled = True
    _model: weakref.ref[PreTrainedModel] | None = None
    _not_text: frozenset[int]
    pipeline: bool

    def _find_linear(self) -> None:
        linear = [i for i, layer in enumerate(self.layers) if isinstance(layer, LinearAttentionCacheLayerMixin)]
        self._first_linear = min(linear, default=None)
        self.linear_layers = frozenset[int]() if self.pipeline else frozenset(linear)

    @property
    def model(self) -> PreTrainedModel | None:
        """The model that fills the cache, None if none has, or it is gone, or no model of transformers is around it."""
        return None if self._model is None else self._model()

    def filled(self, model: PreTrainedModel | None) -> None:
        """Note which model has filled the cache; None if it is not known."""
        self.unfilled, self._model = False, None if model is None else weakref.ref(model)

    @property
    def _progress(self) -> Progress:
        return self.handshake.progress

    def lengths(self) -> set[int]:
        """Return how many tokens the layers hold: one number, unless a forward pass broke off; none if all are new."""
        return self._with_new({layer.get_seq_length() for layer in self._counting()})

    @property
    def counts_tokens(self) -> bool:
        """Whether some layer surely counts the text's tokens: not in a process that may run linear layers alone."""
        return not self.pipeline and any(isinstance(layer, TOKEN_LAYERS) for layer in self.layers)

    def _counting(self, *, initialized: bool = True) -> list[Any]:
        """Return the layers whose length is that of the text: those with tokens so far, or those without."""
        layers = [layer for layer in self.layers if isinstance(layer, TOKEN_LAYERS)]
        return [layer for layer in layers if layer.is_initialized is initialized]

    def _with_new(self, lengths: set[int]) -> set[int]:
        # A pass fills every layer, unless other processes run some of them: a new one beside others was not reached.
        return lengths | {0} if lengths and not self.pipeline and self._counting(initialized=False) else lengths

    def _state_used(self, layer_idx: int) -> None:
        if layer_idx == self._first_linear and not torch.compiler.is_compiling():
            self.handshake.require_model(calling_config())
            if self.unfilled:
                self.filled(calling_model())
        self._progress.change(layer_idx)

    @outside_graphs
    def update(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Give layer `layer_idx` new keys and values; if it refuses them, the cache is as before the forward pass."""
        layer: Any = self.layers[layer_idx] if layer_idx < len(self.layers) else None
        handshake, own = self.handshake, isinstance(layer, KIVLayerMixin)
        if self.unfilled:
            self.filled(calling_model())
        if isinstance(layer, CacheLayerMixin) and key_states.ndim == 4:
            handshake.require_caller(layer.get_seq_length() + key_states.shape[-2])
        known = own or type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)
        if layer is not None and (not known or layer_idx in self._not_text):
            self._progress.change(layer_idx)
        waiting = handshake.staged
        before = None if layer is None or own else dict(vars(layer))
        try:
            key, value = super().update(key_states, value_states, layer_idx, *args, **kwargs)
            if layer is not None and known and before is not None:
                handshake.stock_updated(key, layer.get_seq_length(), key_states.shape[-2])
            return key, value
        except BaseException:
            if known and before is not None:  # its tensors are replaced, never written to
                vars(layer).update(before)
            # What waited before was not this call's: it is dropped by `crop` alone.
            if layer is not None and known and waiting is None:
                self.undo_pass(_held(layer), key_states.shape[-2] if key_states.ndim > 1 else 0)
            raise

    def _held(self) -> set[int]:
        """Return tokens that the layers hold, without those that wait for their attention call."""
        return self._with_new({_held(layer) for layer in self._counting()})

    def undo_pass(self, start: int, tokens: int) -> None:
        """Go back to `start` tokens after a call that failed, if every layer holds these, or `tokens` more.

        Otherwise, or where a layer cannot go back, the cache stays as it is: it does not serve before a crop or reset.
        """
        progress = self._progress
        # The failed call's own error is under way; of one that comes here the next use of the cache tells.
        with contextlib.suppress(KIVError):
            if progress.behind is None and self._held() <= {start, start + tokens}:
                go_back(self.layers, start, progress.changed, self._not_text)
                progress.begin(start)

    def mend(self) -> None:
        """Drop what waits if a forward pass broke off, and bring every layer back to the tokens that all hold.

        Raises
        ------
        KIVUnsupportedError
            A layer that the pass changed keeps no past; nothing has changed.
        """
        handshake = self.handshake
        if not (handshake.closed or handshake.waits() or handshake.is_whole()):
            least = self._progress.least(self._held(), self.linear_layers)
            go_back(self.layers, least, self._progress.changed, self._not_text)
            self._progress.begin(least)


def _held(layer: Any) -> int:
    """Return the tokens that a layer holds, without those that wait for their attention call."""
    return layer.get_seq_length() - getattr(layer, "staged_tokens", 0)
