"""Places in the binding where a fault once went unseen: both parts of a hybrid layer, every sampled token, an order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hf_models import EXACT, TINY_MODELS, falcon_h1, feed
from kiv_hf import KIVCache
from kiv_hf.cache.adapters import Staged, halves, interleaved, latent, repeated
from transformers.cache_utils import LinearAttentionLayer

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="module")
def model() -> Any:
    model = falcon_h1()
    model.set_attn_implementation("kiv")
    return model


def texts(*seeds: Any) -> list[torch.Tensor]:
    return [torch.randint(2, 60, (1, 40), generator=torch.Generator().manual_seed(seed)) for seed in seeds]


@torch.no_grad()
def test_hybrid_forks_share_no_linear_state(model: Any) -> None:
    start, one, other = texts(1, 2, 3)
    cache, alone = KIVCache(model.config, EXACT), KIVCache(model.config, EXACT)
    for each in (cache, alone):
        feed(model, start, each, [40])
    twin = cache.fork()
    feed(model, other, cache, [1] * 40)  # what the twin must not see
    assert torch.equal(feed(model, one, twin, [1] * 40), feed(model, one, alone, [1] * 40))


@torch.no_grad()
def test_a_hybrid_cache_that_was_reset_is_as_new(model: Any) -> None:
    start, other = texts(1, 2)
    cache = KIVCache(model.config, EXACT)
    feed(model, other, cache, [30, *[1] * 10])
    cache.reset()
    torch.testing.assert_close(
        feed(model, start, cache, [1] * 40), feed(model, start, KIVCache(model.config, EXACT), [1] * 40)
    )


@torch.no_grad()
def test_a_hybrid_layer_whose_linear_part_refuses_a_crop_is_unchanged(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, tokens_to_remove: int) -> None:
        raise ValueError("the past was not recorded")

    cache = KIVCache(model.config, EXACT)
    (ids,) = texts(1)
    feed(model, ids, cache, [40])
    monkeypatch.setattr(LinearAttentionLayer, "crop", refuse)
    layers: list[Any] = cache.layers
    for layer in layers:
        with pytest.raises(ValueError, match="not recorded"):
            layer.crop(-3)
        assert layer.get_seq_length() == 40
    with pytest.raises(ValueError, match="not recorded"):
        cache.crop(-3)
    assert cache.lengths() == {40}


@torch.no_grad()
def test_a_crop_asks_the_layers_that_may_refuse_first(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = TINY_MODELS["gemma3"]()
    cache = tiny.cache()
    feed(tiny.kiv, tiny.ids, cache, [96])
    stock = cache.layers[0]
    cache.layers = [*cache.layers[1:], stock]  # the KIV layers would come first in the order of the list

    def refuse(tokens_to_remove: int) -> None:
        raise ValueError("the past was not recorded")

    monkeypatch.setattr(stock, "crop", refuse)
    with pytest.raises(ValueError, match="not recorded"):
        cache.crop(-3)
    assert [layer.store.length for layer in cache.kiv_layers().values()] == [96, 96]


class Linear(torch.nn.Module):
    """Latents to keys and values."""

    weight = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(3))

    def expand_kv(self, latents: torch.Tensor, rotary: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        both = latents @ self.weight
        return torch.cat([both[..., :5], rotary.expand(-1, 2, -1, -1)], -1), both[..., 5:]


def changed(adapter: Any) -> tuple[Any, ...]:
    """Return a module, what was staged, and key and value that `adapter` explains."""
    generator = torch.Generator().manual_seed(1)
    heads = 1 if adapter is latent else 2
    staged = Staged(*(torch.randn(1, heads, 7, width, generator=generator) for width in (6, 4)))
    if adapter is latent:
        return Linear(), staged, *Linear().expand_kv(*staged)
    if adapter is halves:
        return torch.nn.Module(), staged, staged.key.clone(), staged.value.chunk(2, dim=1)[1].repeat(1, 2, 1, 1)
    if adapter is repeated:
        return torch.nn.Module(), staged, *(states.repeat(1, 2, 1, 1) for states in staged)
    return torch.nn.Module(), staged, *(states.repeat_interleave(2, dim=1) for states in staged)


@pytest.mark.parametrize("adapter", [latent, halves, repeated, interleaved], ids=lambda f: f.__name__)
@pytest.mark.parametrize("token", [0, 3, 6], ids=["first", "middle", "last"])
@pytest.mark.parametrize("part", [2, 3], ids=["key", "value"])
def test_an_adapter_looks_at_more_than_the_first_token(adapter: Callable[..., Any], token: int, part: int) -> None:
    arguments: tuple[Any, ...] = changed(adapter)
    assert adapter(*arguments) is not None
    arguments[part][:, -1, token] += 1
    assert adapter(*arguments) is None


@torch.no_grad()
def test_a_reset_layer_serves_another_model() -> None:
    tiny, other = TINY_MODELS["llama"](), TINY_MODELS["llama"]()
    cache = tiny.cache()
    feed(tiny.kiv, tiny.ids, cache, [96])
    for layer in cache.kiv_layers().values():
        layer.adapter = repeated
    cache.reset()
    assert torch.equal(feed(other.kiv, other.ids, cache, [96]), feed(other.kiv, other.ids, other.cache(), [96]))
