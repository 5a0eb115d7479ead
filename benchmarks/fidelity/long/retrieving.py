"""A prefill by retrieval, for documents too long for exact attention: fine pages, chosen for blocks of queries.

A block of 64 queries attends to the first page, the last 1,024 tokens and the 192 pages of 16 whose mean keys score
best for any head of one in four of them, the last one included; a short block asks all of its queries.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import sdpa_mask

PAGE_TOKENS = 16
CHOSEN_PAGES = 192
BLOCK_TOKENS = 64
ASKED_QUERIES = 16
"""Queries of a block that choose pages; twice as many are still all asked."""

HOT_TOKENS = 1024
SPARE_TOKENS = 256
"""Room for a question and its answer behind the document."""


class GrowingLayer(DynamicLayer):
    """Keys and values in buffers made once; a shallow copy goes on from where it was copied, in the same buffers."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self._tokens = tokens
        self._length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor | None = None) -> None:
        """Make the buffers when the first keys show their shape."""
        batch, heads, _, width = key_states.shape
        self.dtype, self.device = key_states.dtype, key_states.device
        self._key, self._value = (key_states.new_empty(batch, heads, self._tokens, width) for _ in range(2))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append, and return all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states)
        stop = self._length + key_states.shape[2]
        self._key[:, :, self._length : stop] = key_states
        self._value[:, :, self._length : stop] = value_states
        self._length = stop
        self.keys, self.values = self._key[:, :, :stop], self._value[:, :, :stop]
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Tokens held."""
        return self._length


class Retrieving:
    """Attention of the global layers by retrieval.

    Parameters
    ----------
    config : the model's
    layers : its global layers
    tokens : of the document
    chunk_tokens : most tokens of a call
    """

    def __init__(self, config: Any, layers: tuple[int, ...], tokens: int, chunk_tokens: int) -> None:
        self._layers = layers
        self._tokens = tokens + SPARE_TOKENS
        self._means: dict[int, torch.Tensor] = {}  # [H, pages, D], of whole pages
        self._counts = dict.fromkeys(layers, 0)
        self._sliding_tokens = (getattr(config, "sliding_window", None) or 0) + chunk_tokens

    def prepare(self, cache: Cache) -> None:
        """Give an empty cache layers that grow without a copy."""
        for index in self._layers:
            cache.layers[index] = GrowingLayer(self._tokens)

    def mask(self, batch_size: int, q_length: int, kv_length: int, *args: Any, **kwargs: Any) -> torch.Tensor | None:
        """Sliding layers' masks; the global layers need none, and theirs would be large."""
        if kv_length > self._sliding_tokens:
            return None
        return sdpa_mask(batch_size, q_length, kv_length, *args, **kwargs)

    def _page_means(self, layer: int, key: torch.Tensor) -> torch.Tensor:
        """Mean keys of the whole pages of ``key [H, T, D]``."""
        known, pages = self._counts[layer], key.shape[1] // PAGE_TOKENS
        if layer not in self._means:
            self._means[layer] = key.new_empty(key.shape[0], self._tokens // PAGE_TOKENS, key.shape[2])
        if pages > known:
            fresh = key[:, known * PAGE_TOKENS : pages * PAGE_TOKENS].unflatten(1, (-1, PAGE_TOKENS))
            self._means[layer][:, known:pages] = fresh.float().mean(dim=2).to(key.dtype)
            self._counts[layer] = pages
        return self._means[layer]

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Output ``[1, n, HQ, DV]`` of the last n of T tokens: ``query [1, HQ, n, D]``, ``key [1, H, T, D]``."""
        means = self._page_means(layer, key[0])
        heads, fresh = key.shape[1], query.shape[2]
        grouped = query[0].unflatten(0, (heads, -1))  # [H, G, n, D]
        output = torch.empty_like(grouped)
        start = key.shape[2] - fresh
        for first in range(0, fresh, BLOCK_TOKENS):
            here = slice(first, min(fresh, first + BLOCK_TOKENS))
            for head in range(heads):
                kept = self._kept(grouped[head, :, here], means[head], start + here.start, start + here.stop)
                visible = kept <= torch.arange(start + here.start, start + here.stop)[:, None]
                keys, values = (x[0, head, kept].expand(grouped.shape[1], -1, -1) for x in (key, value))
                output[head, :, here] = torch.nn.functional.scaled_dot_product_attention(
                    grouped[head, :, here], keys, values, attn_mask=visible, scale=scale
                )
        return output.flatten(0, 1).transpose(0, 1)[None]

    @staticmethod
    def _kept(query: torch.Tensor, means: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Tokens that a block's queries ``[G, n, D]`` attend to, in order but for the pages: int64 [kept]."""
        pages = max(0, start - HOT_TOKENS) // PAGE_TOKENS
        if pages <= CHOSEN_PAGES + 1:
            return torch.arange(stop)
        step = max(1, query.shape[1] // ASKED_QUERIES)
        asking = query[:, (query.shape[1] - 1) % step :: step].flatten(0, 1)
        scores = (asking @ means[1:pages].T).amax(dim=0)
        chosen = scores.float().topk(CHOSEN_PAGES).indices + 1
        tokens = (chosen[:, None] * PAGE_TOKENS + torch.arange(PAGE_TOKENS)).flatten()
        return torch.cat([torch.arange(PAGE_TOKENS), tokens, torch.arange(pages * PAGE_TOKENS, stop)])
