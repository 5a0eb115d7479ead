"""What is measured: a model with a cache, under KIV, under a plain DynamicCache, or under the original KIV's rule."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from kiv_hf import KIVCache, KIVConfig
from transformers import DynamicCache, PreTrainedModel

from .models import load_model, twin
from .original import original_pool

if TYPE_CHECKING:
    from collections.abc import Iterator

PROMPT_TOKENS = 64
"""Real tokens that every cache is fed before random ones: layers are initialised, the binding has seen attention."""


class Subject:
    """A model and its cache.

    Attributes
    ----------
    name : what the tables call it
    model : the model, under the attention implementation that the cache needs
    cache : KIVCache or DynamicCache
    """

    def __init__(self, name: str, model: PreTrainedModel, cache: Any) -> None:
        self.name = name
        self.model = model
        self.cache: Any = cache

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Feed `ids` [1, n] and return the logits of the last token, [V]."""
        with torch.inference_mode():
            output = self.model(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        return output.logits[0, -1]

    def stores(self) -> list[Any]:
        """Return the layer stores of a KIVCache."""
        return [layer.store for layer in self.cache.kiv_layers().values()]

    def close(self) -> None:
        """Free the cache."""
        if isinstance(self.cache, KIVCache):
            self.cache.close()
        self.cache = None


class Factory:
    """Make subjects of one model; those under "kiv" share a second model with the same weights."""

    def __init__(self, model_name: str, impl: str, dtype: torch.dtype = torch.bfloat16) -> None:
        self.model_name = model_name
        self.impl = impl
        loaded: Any = load_model(model_name)
        self.model: PreTrainedModel = loaded.to(dtype)
        self._kiv_model = twin(self.model, "kiv")

    def kiv(self, name: str, config: KIVConfig | None = None) -> Subject:
        """Make a subject with a KIVCache."""
        return Subject(name, self._kiv_model, KIVCache(self._kiv_model.config, config or KIVConfig(), impl=self.impl))

    def plain(self, name: str) -> Subject:
        """Make a subject with a DynamicCache under sdpa."""
        return Subject(name, self.model, DynamicCache(config=self.model.config))

    def original(self, name: str) -> Subject:
        """Make a subject with the original KIV's rule."""
        return Subject(name, self._kiv_model, KIVCache(self._kiv_model.config, KIVConfig(), impl=original_pool))


class TimedStore:
    """A layer store whose `append` and `attend` are timed; everything else is the store's own."""

    def __init__(self, store: Any) -> None:
        self.timed_store = store
        self.append_s = 0.0
        self.attend_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.timed_store, name)

    def append(self, *arguments: Any, **keywords: Any) -> None:
        """Append, and add the time to `append_s`."""
        start = time.perf_counter()
        self.timed_store.append(*arguments, **keywords)
        self.append_s += time.perf_counter() - start

    def attend(self, *arguments: Any, **keywords: Any) -> torch.Tensor:
        """Attend, and add the time to `attend_s`."""
        start = time.perf_counter()
        output = self.timed_store.attend(*arguments, **keywords)
        self.attend_s += time.perf_counter() - start
        return output


class Clocks:
    """Timers in every KIV layer of a subject, for as long as the context is open."""

    def __init__(self, subject: Subject) -> None:
        self._layers = list(subject.cache.kiv_layers().values())
        self._timed: list[TimedStore] = []

    def __enter__(self) -> Clocks:
        self._timed = [TimedStore(layer.store) for layer in self._layers]
        for layer, timed in zip(self._layers, self._timed, strict=True):
            layer.store = timed
        return self

    def __exit__(self, *exception: object) -> None:
        for layer, timed in zip(self._layers, self._timed, strict=True):
            layer.store = timed.timed_store

    def read(self) -> tuple[float, float]:
        """Return the seconds in append and in attend since the last read, all layers together."""
        taken = sum(timed.append_s for timed in self._timed), sum(timed.attend_s for timed in self._timed)
        for timed in self._timed:
            timed.append_s = timed.attend_s = 0.0
        return taken


def chunks(ids: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
    """Cut `ids` [1, T] into pieces of `size` tokens, the last one shorter."""
    return iter(ids.split(size, dim=1))
