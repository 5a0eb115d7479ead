"""The part of the cache that linear layers use: which of their states a forward pass takes or changes is noted.

A linear state counts no tokens and keeps no past: without a note of it a pass that broke off would go unseen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import DynamicCache

if TYPE_CHECKING:
    import torch


class LinearStates(DynamicCache):
    """A `DynamicCache` that notes the layers whose linear states a pass takes or changes."""

    def _state_used(self, layer_idx: int) -> None:
        raise NotImplementedError

    def update_conv_state(self, conv_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Give layer `layer_idx` a new convolution state."""
        self._state_used(layer_idx)
        return super().update_conv_state(conv_states, layer_idx, *args, **kwargs)

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Give layer `layer_idx` a new recurrent state."""
        self._state_used(layer_idx)
        return super().update_recurrent_state(recurrent_states, layer_idx, *args, **kwargs)

    # A step of one token takes the state and writes to it in place, with no call that says so.
    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        """Return the convolution state of layer `layer_idx`, which the pass is about to change."""
        self._state_used(layer_idx)
        return super().get_conv_state(layer_idx, state_idx)

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        """Return the recurrent state of layer `layer_idx`, which the pass is about to change."""
        self._state_used(layer_idx)
        return super().get_recurrent_state(layer_idx, state_idx)

    def has_previous_state(self, layer_idx: int | None = None, *args: Any, **kwargs: Any) -> bool:
        """Tell whether layer `layer_idx` has a state: transformers 5.18 asks while it is about to change it."""
        if layer_idx is not None:
            self._state_used(layer_idx)
        return super().has_previous_state(layer_idx, *args, **kwargs)
