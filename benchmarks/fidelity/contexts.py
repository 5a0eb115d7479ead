"""A long context, prefilled once, then continued by several caches: what they are asked is alike to the last bit.

Prompts are prefilled exactly, as KIV's default does. So the keys and values of a context are alike for every system,
and one prefill with full attention serves all: a `KIVCache` is filled with them. All that comes later, the question
included, goes through the cache under test a token at a time.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from kiv_hf import KIVCache, KIVConfig
from transformers import DynamicCache, PreTrainedModel, QuantizedCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from benchmarks.models import load_model, twin
from benchmarks.original import OriginalPool

CHUNK_TOKENS = 1024
FIRST_TOKENS = 64
"""Tokens that a KIV cache is fed through the model before it is filled: its layers must have seen the model."""


@dataclass(frozen=True)
class System:
    """A cache under test.

    Attributes
    ----------
    name : str
    config : KIVConfig, or None
        None is full attention, with a `DynamicCache` or a `QuantizedCache`.
    impl : str or callable
    backend : str, or None
        Of transformers' `QuantizedCache`.
    """

    name: str
    config: KIVConfig | None = None
    impl: Any = None
    backend: str | None = None


HOT_TOKENS = {"gemma": 2048, "smollm2": 1024}
"""Short name of a model -> hot window of all systems, as at the attention level."""

QUICK_TOKENS = {"gemma": 2560, "smollm2": 1536}
"""Context of a run that only shows that it runs: a little is cold."""

FULL = "full attention"


def systems(model: str, impl: str) -> list[System]:
    """Full attention, KIV's default, and its rivals, under one hot window."""
    hot = HOT_TOKENS[model]
    pages = 128 if model == "gemma" else 64
    found = [
        System(FULL),
        System("KIV", KIVConfig(hot_tokens=hot, candidate_pages=pages), impl),
        System(
            "sinks + window (and one token)",
            KIVConfig(hot_tokens=hot, candidate_pages=1, retrieve_tokens=1, tail="none"),
            impl,
        ),
    ]
    if hot == 2048:  # the rule has fixed numbers
        found.append(System("the original KIV's rule", KIVConfig(), OriginalPool))
    if model == "smollm2":  # transformers' quantised cache refuses models with sliding layers
        found.append(System("quantised cache, fp8", backend="fp8"))
        if importlib.util.find_spec("optimum") and importlib.util.find_spec("optimum.quanto"):
            found.append(System("quantised cache, 4 bits (quanto)", backend="quanto"))
    return found


class Context:
    """A prefilled context of one model."""

    def __init__(self, model: str, ids: torch.Tensor) -> None:
        self.model = load_model(model)
        self._kiv_model = twin(self.model, "kiv")
        self.ids = ids
        self._full = prefill(self.model, ids)
        self._filled: dict[str, KIVCache] = {}
        self._quantised: dict[str, QuantizedCache] = {}

    def open(self, system: System) -> Continuation:
        """Continue the context with a system; the context itself stays as it is."""
        if system.backend is not None:
            if system.name not in self._quantised:
                self._quantised[system.name] = quantise(self.model, system.backend, self._full)
            return Continuation(self.model, copy.deepcopy(self._quantised[system.name]))
        if system.config is None:
            return Continuation(self.model, copy.deepcopy(self._full))
        if system.name not in self._filled:
            cache = KIVCache(self._kiv_model.config, system.config, impl=system.impl)
            fill(self._kiv_model, cache, self.ids, self._full)
            self._filled[system.name] = cache
        return Continuation(self._kiv_model, self._filled[system.name].fork())

    def close(self) -> None:
        """Free all caches."""
        for cache in self._filled.values():
            cache.close()
        self._filled.clear()
        self._quantised.clear()


@torch.no_grad()
def prefill(model: PreTrainedModel, ids: torch.Tensor) -> DynamicCache:
    """Return a `DynamicCache` that holds ``ids [1, T]``."""
    cache = DynamicCache(config=model.config)
    for chunk in ids.split(CHUNK_TOKENS, dim=1):
        model(input_ids=chunk, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


@torch.no_grad()
def fill(model: PreTrainedModel, cache: KIVCache, ids: torch.Tensor, full: DynamicCache) -> None:
    """Bring an empty KIV cache to the state of `full`, which holds `ids`, without attending again."""
    model(input_ids=ids[:, :FIRST_TOKENS], past_key_values=cache, use_cache=True, logits_to_keep=1)
    stores = cache.kiv_layers()
    for index, (mine, theirs) in enumerate(zip(cache.layers, full.layers, strict=True)):
        if index in stores:
            # In pieces: a store may stage what one append brings.
            keys = theirs.keys[:, :, FIRST_TOKENS:].split(CHUNK_TOKENS, dim=2)
            values = theirs.values[:, :, FIRST_TOKENS:].split(CHUNK_TOKENS, dim=2)
            for key, value in zip(keys, values, strict=True):
                stores[index].store.append(key, value)
        else:
            assert isinstance(theirs, DynamicSlidingWindowLayer)
            mine.keys, mine.values = theirs.keys.clone(), theirs.values.clone()
            mine.cumulative_length = theirs.cumulative_length


@torch.no_grad()
def quantise(model: PreTrainedModel, backend: str, full: DynamicCache) -> QuantizedCache:
    """Return transformers' quantised cache (4 bits where the backend lets one choose) with what `full` holds."""
    bits = {} if backend == "fp8" else {"nbits": 4}
    cache = QuantizedCache(backend, model.config, **bits)
    for mine, theirs in zip(cache.layers, full.layers, strict=True):
        mine.update(theirs.keys, theirs.values)
    return cache


class Continuation:
    """A system that goes on from a context."""

    def __init__(self, model: PreTrainedModel, cache: Any) -> None:
        self._model = model
        self._cache = cache

    @torch.no_grad()
    def feed(self, ids: torch.Tensor) -> torch.Tensor:
        """Feed ``ids [1, n]`` and return float32 logits ``[n, V]``; a KIV cache gets them one at a time."""
        parts = ids.split(1, dim=1) if isinstance(self._cache, KIVCache) else [ids]
        found = [self._model(input_ids=part, past_key_values=self._cache, use_cache=True).logits[0] for part in parts]
        return torch.cat(found).float()

    def greedy(self, logits: torch.Tensor, count: int, stop: Callable[[list[int]], bool] | None = None) -> list[int]:
        """Decode at most `count` tokens greedily after ``logits [V]``."""
        found: list[int] = []
        while len(found) < count:
            found.append(int(logits.argmax()))
            if stop is not None and stop(found):
                break
            if len(found) < count:
                logits = self.feed(torch.tensor([[found[-1]]]))[-1]
        return found

    def close(self) -> None:
        """Free the cache."""
        if isinstance(self._cache, KIVCache):
            self._cache.close()
