"""A cache that goes on from a context, whoever made it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from kiv_hf import KIVCache

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import Cache, PreTrainedModel


def fork_stock(cache: Cache) -> Cache:
    """Return an independent cache that shares tensors: dynamic layers replace theirs and never change them."""
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    return twin


class Continuation:
    """A model and a cache that goes on.

    Parameters
    ----------
    one_by_one : bool
        Whether every token goes through the cache in a step of its own.
    """

    def __init__(self, model: PreTrainedModel, cache: Any, *, one_by_one: bool) -> None:
        self._model = model
        self.cache = cache
        self._one_by_one = one_by_one

    def _parts(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return ids.split(1, dim=1) if self._one_by_one else (ids,)

    def _step(self, model: Any, ids: torch.Tensor, **keywords: Any) -> Any:
        return model(input_ids=ids, past_key_values=self.cache, use_cache=True, **keywords)

    @torch.no_grad()
    def feed(self, ids: torch.Tensor) -> torch.Tensor:
        """Feed ``ids [1, n]`` and return float32 logits ``[n, V]``."""
        return torch.cat([self._step(self._model, part).logits[0] for part in self._parts(ids)]).float()

    @torch.no_grad()
    def read(self, ids: torch.Tensor) -> torch.Tensor:
        """Feed ``ids [1, n]`` and return float32 logits ``[V]`` after the last, without those in between."""
        *before, last = self._parts(ids)
        for part in before:
            self._step(self._model.base_model, part)
        return self._step(self._model, last, logits_to_keep=1).logits[0, -1].float()

    def greedy(self, logits: torch.Tensor, count: int, stop: Callable[[list[int]], bool] | None = None) -> list[int]:
        """Decode at most `count` tokens greedily after ``logits [V]``."""
        found: list[int] = []
        while len(found) < count:
            found.append(int(logits.argmax()))
            if stop is not None and stop(found):
                break
            if len(found) < count:
                logits = self.read(torch.tensor([[found[-1]]], device=self._model.device))
        return found

    def close(self) -> None:
        """Free the cache, if it can be."""
        if isinstance(self.cache, KIVCache):
            self.cache.close()
