"""A cache of every kind of attention is saved and loaded between any two forward passes, and nobody can tell."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
import torch
from kiv_hf import KIVCache
from kiv_hf.routing import use_kiv

from .catalog import tiny_model
from .compare import EXACT, distance_of, stock_model, without_masked
from .fast import SMALL
from .feeds import PIECES, feed, padded, text
from .test_models import DELEGATED, SUPPORTED

if TYPE_CHECKING:
    from pathlib import Path

KINDS = {**SUPPORTED, **DELEGATED}
kinds = pytest.mark.parametrize("model_type", KINDS, ids=lambda name: f"{name}: {KINDS[name]}")


@kinds
@torch.no_grad()
def test_the_next_logits_are_the_same_bits(model_type: str, tmp_path: Path) -> None:
    """Saved to one folder again and again, of which only what is new is written; padded too, where there is a batch."""
    model = use_kiv(tiny_model(model_type, None))
    ids = text(model)
    whole = ids.shape[0] == 1 and ids.ndim == 2
    feeds = [(ids, None), *([padded(ids)] if whole else [])]
    for number, (batch, mask) in enumerate(feeds):
        expected = feed(model, batch, KIVCache(model.config, SMALL), PIECES["chunks"], mask)

        def reopened(cache: KIVCache, folder: Path = tmp_path / str(number)) -> KIVCache:
            cache.save(folder)
            return KIVCache.load(folder, model)

        got = feed(model, batch, KIVCache(model.config, SMALL), PIECES["chunks"], mask, reopened)
        assert torch.equal(got, expected)


@kinds
@torch.no_grad()
def test_implementations_take_turns(model_type: str, tmp_path: Path) -> None:
    """What the one has saved the other loads."""
    model, close = stock_model(model_type)
    model = use_kiv(model)
    ids, turns = text(model), itertools.cycle(["fast", "reference"])
    expected = feed(model, ids, KIVCache(model.config, EXACT), PIECES["chunks"])

    def reopened(cache: Any) -> KIVCache:
        cache.save(tmp_path)
        return KIVCache.load(tmp_path, model, impl=next(turns))

    got = feed(model, ids, KIVCache(model.config, EXACT, impl="reference"), PIECES["chunks"], None, reopened)
    assert distance_of(got, expected) <= close * float(without_masked(expected).abs().max())
