"""Layers that cannot go back, linear states among them: what is refused early costs nothing, the rest is named."""

from __future__ import annotations

from typing import Any, cast

import hf_models
import pytest
import torch
from hf_models import EXACT
from kiv_hf import KIVCache
from kiv_reference.errors import KIVBudgetError, KIVUnsupportedError, KIVUsageError
from transformers import FalconH1ForCausalLM, Qwen3NextConfig, Qwen3NextForCausalLM

PAST = 40
SIZES: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "initializer_range": 0.3, "pad_token_id": 0,
}  # fmt: skip


def falcon_h1() -> tuple[FalconH1ForCausalLM, str]:
    """Make every layer have a linear state beside its attention."""
    return hf_models.falcon_h1(), "feed_forward"


def qwen3_next() -> tuple[Qwen3NextForCausalLM, str]:
    """Make the first layer and the last have a linear state alone."""
    config = Qwen3NextConfig(
        **SIZES, num_hidden_layers=3, layer_types=["linear_attention", "full_attention", "linear_attention"],
        linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
        num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16, shared_expert_intermediate_size=16,
    )  # fmt: skip
    config._experts_implementation = "eager"
    return Qwen3NextForCausalLM(config), "mlp"


class Stop(RuntimeError):
    """What a test breaks a forward pass with."""


def stop(*_: Any) -> None:
    raise Stop


@pytest.fixture(params=[falcon_h1, qwen3_next], ids=lambda make: make.__name__)
def hybrid(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    torch.manual_seed(1)
    model, mlp = request.param()
    model = model.eval()
    model.set_attn_implementation("kiv")
    return model, mlp


IDS = torch.randint(2, 60, (1, 60), generator=torch.Generator().manual_seed(3))


def caches(model: Any) -> tuple[KIVCache, KIVCache]:
    both = KIVCache(model.config, EXACT), KIVCache(model.config, EXACT)
    for cache in both:
        model(IDS[:, :PAST], past_key_values=cache)
    return both


def broken(model: Any, mlp: Any, cache: Any, index: int, ids: torch.Tensor) -> None:
    hook = getattr(model.model.layers[index], mlp).register_forward_pre_hook(stop)
    with pytest.raises(Stop):
        model(ids, past_key_values=cache)
    hook.remove()


def test_a_wrong_mask_costs_nothing(hybrid: tuple[Any, Any]) -> None:
    model, _ = hybrid
    cache, other = caches(model)
    mask = torch.ones_like(IDS)
    mask[0, 3:7] = 0
    with pytest.raises(KIVUsageError, match="differs first at position 3"):
        model(IDS[:, PAST:], past_key_values=cache, attention_mask=mask)
    for piece in IDS[:, PAST:].split(7, dim=1):
        got, right = (model(piece, past_key_values=each).logits for each in (cache, other))
        assert torch.equal(got, right)


@pytest.mark.parametrize("tokens", [1, 10])
@pytest.mark.parametrize("forked", [False, True])
@pytest.mark.parametrize("index", [0, 1])
def test_a_state_that_is_ahead_is_noticed_and_named(
    hybrid: tuple[Any, Any], index: int, forked: bool, tokens: int
) -> None:
    """Where no layer that counts tokens was reached, or all were: the next call would give a wrong number.

    A step of one token changes the states in place: the cache is told only that they were taken.
    """
    model, mlp = hybrid
    if index == len(model.model.layers) - 1:
        pytest.skip("every layer has the tokens then")
    cache, _ = caches(model)
    cache = cache.fork() if forked else cache
    broken(model, mlp, cache, index, IDS[:, PAST : PAST + tokens])
    for _ in range(2):
        with pytest.raises(KIVUsageError, match=r"cache\.reset"):
            model(IDS[:, PAST : PAST + tokens], past_key_values=cache)
    with pytest.raises(KIVUsageError, match="earlier forward pass broke off"):
        cache.fork()
    for _ in range(2):
        with pytest.raises(KIVUnsupportedError, match=r"layer 0, a .*Linear|layer 0, a KIVHybridLayer"):
            cache.crop(0)
    cache.reset()
    got, right = (model(IDS, past_key_values=each).logits for each in (cache, KIVCache(model.config, EXACT)))
    assert torch.equal(got, right)


@pytest.mark.parametrize("called_again", [False, True])
@pytest.mark.parametrize("index", [0, 1])
def test_in_the_first_pass_a_crop_empties_the_cache(hybrid: tuple[Any, Any], index: int, called_again: bool) -> None:
    """Also where every layer that counts tokens has them, and the linear state after it has not."""
    model, mlp = hybrid
    if index == len(model.model.layers) - 1:
        pytest.skip("every layer has the tokens then")
    cache = KIVCache(model.config, EXACT)
    broken(model, mlp, cache, index, IDS[:, :PAST])
    for _ in range(2 * called_again):
        with pytest.raises(KIVUsageError, match=r"cache\.crop\(0\)"):
            model(IDS[:, :PAST], past_key_values=cache)
    cache.crop(0)
    got, right = (model(IDS, past_key_values=each).logits for each in (cache, KIVCache(model.config, EXACT)))
    assert torch.equal(got, right)


def test_a_budget_in_the_middle(hybrid: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The call's own error comes first; that the cache cannot go back is said by the next."""
    model, _ = hybrid
    cache, _ = caches(model)

    def full(*_: Any, **__: Any) -> None:
        raise KIVBudgetError("full")

    with monkeypatch.context() as patch:
        patch.setattr(next(iter(cache.kiv_layers().values())).store, "append", full)
        with pytest.raises(KIVBudgetError):
            model(IDS[:, PAST:50], past_key_values=cache)
    with pytest.raises(KIVUsageError, match=r"cache\.reset"):
        model(IDS[:, PAST:50], past_key_values=cache)
    with pytest.raises(KIVUnsupportedError, match=r"cache\.reset"):
        cache.crop(0)


def test_a_text_in_many_pieces_and_forks_goes_on(hybrid: tuple[Any, Any]) -> None:
    """What is kept to notice all this stands in no one's way."""
    model, _ = hybrid
    cache, other = caches(model)
    twin = cache.fork()
    for piece in IDS[:, PAST:].split(3, dim=1):
        logits = [model(piece, past_key_values=each).logits for each in (cache, other, twin)]
        assert torch.equal(logits[0], logits[1])
        assert torch.equal(logits[0], logits[2])
        for each in (cache, other, twin):
            each.reorder_cache(cast("torch.LongTensor", torch.tensor([0])))
