"""A cache that goes on from a context, whoever made it; no implementation of a cache is known here."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
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
    position : int, optional
        Position of the next token, where the cache does not know it because it threw tokens away.
    on_close : ExitStack, optional
        Closed together with the continuation.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        cache: Any,
        *,
        one_by_one: bool,
        position: int | None = None,
        on_close: ExitStack | None = None,
    ) -> None:
        self._model = model
        self.cache = cache
        self._one_by_one = one_by_one
        self._position = position
        self._on_close = on_close or ExitStack()

    def _parts(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return ids.split(1, dim=1) if self._one_by_one else (ids,)

    def _step(self, model: Any, ids: torch.Tensor, **keywords: Any) -> Any:
        if self._position is not None:
            positions = torch.arange(self._position, self._position + ids.shape[1])
            self._position += ids.shape[1]
            keywords["position_ids"] = positions[None]
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
        self._on_close.close()
