"""A long context, prefilled once, then continued by several caches: what they are asked is alike to the last bit.

Prompts are prefilled exactly, as KIV's default does. So the keys and values of a context are alike for every system,
and one prefill with full attention serves all: a `KIVCache` is filled with them. All that comes later, the question
included, goes through KIV and the window a token at a time. Other rivals attend all tokens whatever comes at once.
"""

from __future__ import annotations

import copy
from contextlib import ExitStack

import torch
from kiv_hf import KIVCache
from transformers import Cache, DynamicCache, PreTrainedModel, QuantizedCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from benchmarks.models import load_model, twin

from .continuation import Continuation, fork_stock
from .queries import SampledQueries
from .systems import SINK_TOKENS, System
from .window import windowed

CHUNK_TOKENS = 1024
FIRST_TOKENS = 64
"""Tokens that a KIV cache is fed through the model before it is filled: its layers must have seen the model."""


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
        self._made: dict[str, Cache] = {}

    def open(self, system: System) -> Continuation:
        """Continue the context with a system; the context itself stays as it is."""
        if system.kind == "original":  # its store cannot fork
            return kiv_continuation(self._kiv_model, self._make(system))
        if system.name not in self._made:
            self._made[system.name] = self._make(system)
        made = self._made[system.name]
        if isinstance(made, KIVCache):
            return kiv_continuation(self._kiv_model, made.fork())
        return Continuation(self.model, fork_stock(made), one_by_one=system.kind == "window")

    def _make(self, system: System) -> Cache:
        if system.kind == "full":
            return self._full
        if system.kind == "quantised":
            return filled_stock(QuantizedCache(system.backend, self.model.config, **dict(system.options)), self._full)
        if system.kind == "offloaded":
            return filled_stock(DynamicCache(config=self.model.config, offloading=True), self._full)
        if system.kind == "window":
            return windowed(self.model.config, self._full, SINK_TOKENS, system.hot_tokens)
        cache = KIVCache(self._kiv_model.config, system.config, impl=system.impl)
        fill(self._kiv_model, cache, self.ids, self._full, self._queries)
        return cache

    def close(self) -> None:
        """Free all caches."""
        for cache in self._made.values():
            if isinstance(cache, KIVCache):
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
    for index, (mine, theirs) in enumerate(zip(cache.layers, full.layers, strict=True)):
        if index in stores:
            # In pieces: a store may stage what one append brings.
            for start in range(FIRST_TOKENS, ids.shape[1], CHUNK_TOKENS):
                part = slice(start, min(start + CHUNK_TOKENS, ids.shape[1]))
                stores[index].store.append(theirs.keys[:, :, part], theirs.values[:, :, part])
                queries.attend(stores[index].store, index, part.start, part.stop)
        else:
            assert isinstance(theirs, DynamicSlidingWindowLayer)
            mine.keys, mine.values = theirs.keys.clone(), theirs.values.clone()
            mine.cumulative_length = theirs.cumulative_length


@torch.no_grad()
def filled_stock(cache: Cache, full: DynamicCache) -> Cache:
    """Fill one of transformers' caches, layer by layer, through its own `update`, and return it."""
    for index, theirs in enumerate(full.layers):
        if isinstance(theirs, DynamicSlidingWindowLayer):
            cache.layers[index] = copy.copy(theirs)
        else:
            cache.update(theirs.keys, theirs.values, index)
    return cache


def kiv_continuation(model: PreTrainedModel, cache: Cache) -> Continuation:
    """Go on with a KIV cache, a token at a time; it is closed with the continuation."""
    assert isinstance(cache, KIVCache)
    on_close = ExitStack()
    on_close.callback(cache.close)
    return Continuation(model, cache, one_by_one=True, on_close=on_close)


def refusals(model: str, tested: list[System]) -> dict[str, str]:
    """Why each rival does not run here with a model, in its own words; rivals that run are not in it.

    Tried on a context of 192 tokens and two steps. Errors of full attention, of KIV and of the original's rule are
    raised: they are ours.
    """
    ids = torch.arange(1000, 1192)[None]
    context = Context(model, ids)
    found: dict[str, str] = {}
    for system in tested:
        if not system.rival:
            continue
        try:
            continuation = context.open(system)
            continuation.read(ids[:, :1])
            continuation.read(ids[:, 1:2])
        except Exception as error:  # whatever it is, it is reported as this rival's result
            found[system.name] = f"{type(error).__name__}: {' '.join(str(error).split())}"
    context.close()
    return found
