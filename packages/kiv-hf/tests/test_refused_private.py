"""Layers of a model's own design, indexed ones too: after a broken pass they refuse by name, if it reached them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hf_models import TinyModel, feed, pair
from kiv_reference.errors import KIVUnsupportedError, KIVUsageError
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicIndexedLayer, DynamicLayer

if TYPE_CHECKING:
    from kiv_hf import KIVCache

PAST = 50


class PrivateLayer(DynamicLayer):
    """What a model might bring along: rules of its own, of which KIV knows nothing."""


class Stop(RuntimeError):
    """What a test breaks a forward pass with."""


def stop(*_: Any) -> None:
    raise Stop


@pytest.fixture(params=[DynamicIndexedLayer, PrivateLayer], ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def filled(tiny: TinyModel, kind: Any) -> KIVCache:
    """Return a cache whose middle layer is private."""
    cache = tiny.cache()
    cache.layers[1] = kind()
    feed(tiny.kiv, tiny.ids[:, :PAST], cache, [PAST])
    return cache


def broken(tiny: TinyModel, cache: Any, index: int, tokens: int = 46) -> None:
    start = cache.get_seq_length()
    hook = tiny.kiv.model.layers[index].mlp.register_forward_pre_hook(stop)
    with pytest.raises(Stop):
        tiny.kiv(tiny.ids[:, start : start + tokens], past_key_values=cache)
    hook.remove()


def goes_on(tiny: TinyModel, cache: Any, other: Any) -> None:
    start = cache.get_seq_length()
    got, right = (tiny.kiv(tiny.ids[:, start:], past_key_values=each).logits for each in (cache, other))
    assert torch.equal(got, right)


@pytest.fixture
def tiny() -> TinyModel:
    return pair(LlamaConfig, LlamaForCausalLM, num_hidden_layers=3)


@pytest.mark.parametrize("tokens", [1, 46])
def test_a_layer_that_the_pass_reached_refuses_by_name(tiny: TinyModel, kind: Any, tokens: int) -> None:
    cache = filled(tiny, kind)
    broken(tiny, cache, 1, tokens)
    with pytest.raises(KIVUsageError, match=r"layers \[1\] ahead.*cache\.crop\(0\).*cache\.reset"):
        tiny.kiv(tiny.ids[:, PAST:], past_key_values=cache)
    layer: Any = cache.layers[1]
    held, kept = cache.lengths(), layer.keys
    assert held == {PAST, PAST + tokens}
    for crop in (0, 0, -3):
        with pytest.raises(KIVUnsupportedError, match=rf"layer 1, a {kind.__name__}, .*cache\.reset"):
            cache.crop(crop)
    assert (cache.lengths(), layer.keys is kept) == (held, True)
    cache.reset()
    assert cache.lengths() == set()
    feed(tiny.kiv, tiny.ids[:, :PAST], cache, [PAST])
    goes_on(tiny, cache, filled(tiny, kind))


def test_one_that_it_did_not_reach_is_no_hindrance(tiny: TinyModel, kind: Any) -> None:
    cache = filled(tiny, kind)
    broken(tiny, cache, 0)
    cache.crop(0)
    goes_on(tiny, cache, filled(tiny, kind))


def test_in_the_first_pass_there_is_a_way_back(tiny: TinyModel, kind: Any) -> None:
    cache = tiny.cache()
    cache.layers[1] = kind()
    broken(tiny, cache, 1, PAST)
    cache.crop(0)
    feed(tiny.kiv, tiny.ids[:, :PAST], cache, [PAST])
    goes_on(tiny, cache, filled(tiny, kind))
