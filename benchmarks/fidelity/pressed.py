"""A document read under presses of kvpress, which throw tokens away, and continued under them.

A press throws away all but as many tokens as KIV attends exactly (sinks, hot and retrieved) once the document is read,
and again every so many tokens; the question comes later, as for KIV, a token at a time.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from transformers import DynamicCache

from benchmarks.models import load_model

from .continuation import Continuation, fork_stock
from .memory import stock_bytes
from .plan import HOT_TOKENS

MODEL = "smollm2"
FULL = "full attention"
PRESSES = ("ExpectedAttentionPress", "KeyDiffPress", "SnapKVPress", "TOVAPress")
KEPT_TOKENS = 4 + HOT_TOKENS[MODEL] + 512  # a copy of KIV's defaults: it is not installed here
INTERVAL_TOKENS = 96
"""Decoded tokens between two compressions: SnapKV needs more than the 64 that it looks back at."""


def make_press(name: str, tokens: int) -> Any:
    """Make a press that brings `tokens` down to `KEPT_TOKENS`, and keeps them there."""
    import kvpress

    first = getattr(kvpress, name)(compression_ratio=max(0.0, 1 - KEPT_TOKENS / tokens))
    later = kvpress.DecodingPress(getattr(kvpress, name)(), INTERVAL_TOKENS, KEPT_TOKENS)
    return kvpress.PrefillDecodingPress(prefilling_press=first, decoding_press=later)


class PressedContext:
    """A document read under each press, and under none."""

    def __init__(self, ids: torch.Tensor, names: tuple[str, ...] = PRESSES) -> None:
        self.model = load_model(MODEL)
        self.ids = ids
        self._caches: dict[str, DynamicCache] = {}
        for name in (FULL, *names):
            cache = DynamicCache(config=self.model.config)
            with torch.no_grad(), self._pressing(name):
                # In one call: a press takes a second chunk for decoding.
                self.model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
            self._caches[name] = cache

    def _pressing(self, name: str) -> ExitStack:
        stack = ExitStack()
        if name != FULL:
            stack.enter_context(make_press(name, self.ids.shape[1])(self.model))
        return stack

    def open(self, name: str, pressing: bool = True) -> Continuation:
        """Go on, under the press until it is closed; without `pressing` nothing is thrown away any more."""
        on_close = self._pressing(name) if pressing else ExitStack()
        cache = fork_stock(self._caches[name])
        return Continuation(self.model, cache, one_by_one=name != FULL, position=self.ids.shape[1], on_close=on_close)

    def bytes(self, name: str) -> int:
        """Bytes of a press's cache."""
        return stock_bytes(self._caches[name].layers)
