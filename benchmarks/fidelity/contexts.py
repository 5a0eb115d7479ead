"""A long context, prefilled once, then continued by several caches: what they are asked is alike to the last bit.

Prompts are prefilled exactly, as KIV's default does. So the keys and values of a context are alike for every system,
and one prefill with full attention serves all: a `KIVCache` is filled with them. All that comes later, the question
included, goes through KIV a token at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from kiv_hf import KIVCache, KIVConfig
from transformers import DynamicCache, PreTrainedModel

from benchmarks.models import load_model, twin

from .continuation import Continuation, fork_stock
from .queries import SampledQueries

CHUNK_TOKENS = 1024
FIRST_TOKENS = 64
"""Tokens that a KIV cache is fed through the model before it is filled: its layers must have seen the model."""

FULL = "full attention"


@dataclass(frozen=True)
class System:
    """A cache under test.

    Attributes
    ----------
    name : str
    config : KIVConfig, or None
        None is a `DynamicCache`, and full attention.
    impl : str
        Of a `KIVCache`.
    """

    name: str
    config: KIVConfig | None = None
    impl: str = ""


def asked(**knobs: Any) -> KIVConfig:
    """Configure a cache whose context is filled, not read: of its prompt the answers are thrown away."""
    return KIVConfig(**knobs, prefill="window", query_block_tokens=1024, exact_suffix_tokens=0)


class Context:
    """A prefilled context of one model.

    Parameters
    ----------
    model : str
        Short name.
    ids : Tensor, int64 [1, T]
    """

    def __init__(self, model: str, ids: torch.Tensor) -> None:
        self.model = load_model(model)
        self._kiv_model = twin(self.model, "kiv")
        self.ids = ids
        self._queries = SampledQueries(self.model)
        self._full = prefill(self._queries.model, ids)
        self._made: dict[str, KIVCache] = {}

    def open(self, system: System) -> Continuation:
        """Continue the context with a system; the context itself stays as it is."""
        if system.config is None:
            return Continuation(self.model, fork_stock(self._full), one_by_one=False)
        if system.name not in self._made:
            self._made[system.name] = self._make(system)
        return Continuation(self._kiv_model, self._made[system.name].fork(), one_by_one=True)

    def _make(self, system: System) -> KIVCache:
        cache = KIVCache(self._kiv_model.config, system.config, impl=system.impl)
        fill(self._kiv_model, cache, self.ids, self._full, self._queries)
        return cache

    def close(self) -> None:
        """Free all caches."""
        for cache in self._made.values():
            cache.close()
        self._made.clear()


@torch.no_grad()
def prefill(model: PreTrainedModel, ids: torch.Tensor) -> DynamicCache:
    """Return a `DynamicCache` that holds ``ids [1, T]``."""
    cache = DynamicCache(config=model.config)
    for chunk in ids.split(CHUNK_TOKENS, dim=1):
        model(input_ids=chunk, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


@torch.no_grad()
def fill(
    model: PreTrainedModel, cache: KIVCache, ids: torch.Tensor, full: DynamicCache, queries: SampledQueries
) -> None:
    """Bring an empty KIV cache to the state of `full`, which holds `ids`, without running the model again.

    The store attends to each chunk as its configuration says for prompts: ``prefill="window"`` is the cheapest.
    """
    model(input_ids=ids[:, :FIRST_TOKENS], past_key_values=cache, use_cache=True, logits_to_keep=1)
    stores = cache.kiv_layers()
    layers: list[tuple[Any, Any]] = list(zip(cache.layers, full.layers, strict=True))
    for index, (mine, theirs) in enumerate(layers):
        if index in stores:
            # In pieces: a store may stage what one append brings.
            for start in range(FIRST_TOKENS, ids.shape[1], CHUNK_TOKENS):
                part = slice(start, min(start + CHUNK_TOKENS, ids.shape[1]))
                stores[index].store.append(theirs.keys[:, :, part], theirs.values[:, :, part])
                queries.attend(stores[index].store, index, part.start, part.stop)
        else:
            assert theirs.is_sliding
            mine.keys, mine.values = theirs.keys.clone(), theirs.values.clone()
            mine.cumulative_length = theirs.cumulative_length
