"""Sinks and a window, the simplest rival: a `DynamicCache` whose full-attention layers forget what is between them."""

from __future__ import annotations

import copy

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer


class WindowLayer(DynamicLayer):
    """A layer that keeps its first and its last tokens, at the positions that they had.

    Prompts of more than one token are attended exactly by no rival; so tokens come one at a time once it is full.
    """

    def __init__(self, sink_tokens: int, hot_tokens: int) -> None:
        super().__init__()
        self.sink_tokens = sink_tokens
        self.hot_tokens = hot_tokens
        self.length = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add tokens, forget the middle, and return what is left, keys and values ``[B, H, kept, D]``."""
        self.length += key_states.shape[-2]
        super().update(key_states, value_states)
        self.keys, self.values = self._kept(self.keys), self._kept(self.values)
        return self.keys, self.values

    def _kept(self, states: torch.Tensor) -> torch.Tensor:
        if states.shape[-2] <= self.sink_tokens + self.hot_tokens:
            return states
        return torch.cat([states[:, :, : self.sink_tokens], states[:, :, -self.hot_tokens :]], dim=2)

    def get_seq_length(self) -> int:
        """Tokens seen, forgotten ones included: the position of the next token."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length of the keys that one more token sees, which may see them all; the offset is 0."""
        assert query_length == 1, "a window is continued a token at a time"
        kept = 0 if self.keys is None else self.keys.shape[-2]
        return min(kept + 1, self.sink_tokens + self.hot_tokens), 0


def windowed(config: PreTrainedConfig, full: DynamicCache, sink_tokens: int, hot_tokens: int) -> DynamicCache:
    """Return a cache with what is left of `full`; tensors are shared where nothing is cut."""
    cache = DynamicCache(config=config)
    for index, theirs in enumerate(full.layers):
        if type(theirs) is DynamicLayer:
            layer = WindowLayer(sink_tokens, hot_tokens)
            layer.update(theirs.keys, theirs.values)
            cache.layers[index] = layer
        else:
            cache.layers[index] = copy.copy(theirs)
    return cache
