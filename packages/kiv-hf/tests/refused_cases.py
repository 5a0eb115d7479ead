"""A cache in the middle of a text, to which something happens that must cost nothing of it (SPEC 10.4)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from hf_models import EXACT, TINY_MODELS, TinyModel, feed, pair
from transformers import LlamaConfig, LlamaForCausalLM

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest
    from kiv_reference import KIVConfig

PAST = 50
MODELS = {
    "llama": lambda: pair(LlamaConfig, LlamaForCausalLM, num_hidden_layers=3),
    "gemma3": TINY_MODELS["gemma3"],  # its first layer is a window of 12 tokens, of transformers' own
}
PLACES = {"RAM": ("fast", None), "disk": ("fast", 0.8), "reference": ("reference", None)}
"""Implementation, and the share of what the keys and values of the past take that fits into RAM."""


class Stop(RuntimeError):
    """What a test breaks a forward pass with."""


class Case:
    """A cache in the middle of a text, beside one that nothing happens to."""

    def __init__(self, tiny: TinyModel, place: str, folder: Path, rows: int = 1, config: KIVConfig = EXACT) -> None:
        impl, ram = PLACES[place]
        if ram is not None:
            first = tiny.cache(config)
            feed(tiny.kiv, tiny.ids[:, :PAST], first, [PAST])
            config = replace(config, ram_bytes=int(first.memory().ram * ram * rows), spill_dir=folder)
        self.tiny, self.ids = tiny, torch.cat([tiny.ids, tiny.ids.flip(1)])[:rows]
        self.cache, self.other = (tiny.cache(config, impl=impl) for _ in range(2))
        for cache in (self.cache, self.other):
            feed(tiny.kiv, self.ids[:, :PAST], cache, [20, 30])
        assert (self.cache.memory().disk > 0) == (ram is not None)

    def call(self, **kwargs: Any) -> Any:
        return self.tiny.kiv(self.ids[:, PAST:], past_key_values=self.cache, **kwargs).logits

    def goes_on(self) -> None:
        """Check that the same call and later ones give what they give a cache that nothing happened to."""
        assert self.cache.lengths() == {PAST}
        got = torch.cat([self.call(), feed(self.tiny.kiv, self.ids[:, :2], self.cache, [1, 1])], dim=1)
        right = feed(self.tiny.kiv, torch.cat([self.ids[:, PAST:], self.ids[:, :2]], 1), self.other, [46, 1, 1])
        assert torch.equal(got, right)
        assert sum(self.cache.memory()) == sum(self.other.memory())


def raising(error: BaseException) -> Callable[..., None]:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


def in_attend(case: Case, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> Any:
    last = list(case.cache.kiv_layers().values())[-1].store
    monkeypatch.setattr(last, "attend", raising(error))
    return last
