"""A forward pass that broke off ends with that: whatever another model then does in the thread is its own affair."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hf_interfaces import attention_gets, registered
from hf_models import PAGES, TinyModel, feed
from kiv_hf import KIVCache, KIVConfig
from kiv_reference.errors import KIVBudgetError, KIVUnsupportedError
from transformers import AttentionInterface, CLIPVisionConfig, CLIPVisionModel, LlavaConfig
from transformers import LlavaForConditionalGeneration as Llava

if TYPE_CHECKING:
    from collections.abc import Callable

VISION: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4, "projection_dim": 16, "initializer_range": 0.3,
}  # fmt: skip


class Stop(RuntimeError):
    """What a test breaks a forward pass with."""


def stop(*_: Any, **__: Any) -> None:
    raise Stop


def in_attention(llama: TinyModel, cache: Any) -> None:
    """Act between the cache update and KIV's attention."""
    with registered(attention=stop):
        llama.kiv(llama.ids[:, 50:], past_key_values=cache)


def in_attention_by_an_interrupt(llama: TinyModel, cache: Any) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with registered(attention=interrupt):
        llama.kiv(llama.ids[:, 50:], past_key_values=cache)


def in_the_mlp(llama: TinyModel, cache: Any) -> None:
    hook = llama.kiv.model.layers[0].mlp.register_forward_pre_hook(stop)
    try:
        llama.kiv(llama.ids[:, 50:], past_key_values=cache)
    finally:
        hook.remove()


def of_a_mask(llama: TinyModel, cache: Any) -> None:
    llama.kiv(llama.ids[:, 50:], past_key_values=cache, attention_mask=torch.ones(1, 1, 46, 96, dtype=torch.bool))


def of_foreign_tensors(llama: TinyModel, cache: Any) -> None:
    with attention_gets(lambda k, v: (k.clone(), v)):
        llama.kiv(llama.ids[:, 50:], past_key_values=cache)


def of_a_budget(llama: TinyModel, _cache: Any) -> None:
    llama.kiv(
        llama.ids, past_key_values=llama.cache(KIVConfig(retrieve_tokens=None, ram_bytes=1000, disk_bytes=0, **PAGES))
    )


BREAKS = [in_attention, in_attention_by_an_interrupt, in_the_mlp, of_a_mask, of_foreign_tensors, of_a_budget]
ENDINGS = (Stop, KeyboardInterrupt, KIVUnsupportedError, KIVBudgetError)


def vision() -> CLIPVisionModel:
    torch.manual_seed(0)
    return CLIPVisionModel(CLIPVisionConfig(**VISION)).eval()


@pytest.mark.parametrize("broken", BREAKS)
@pytest.mark.parametrize("cache_lives", [True, False])
def test_a_tower_without_masks_runs_after_it(llama: TinyModel, broken: Callable[..., Any], cache_lives: bool) -> None:
    pixels = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    tower = vision()
    expected = tower(pixels).last_hidden_state
    tower.set_attn_implementation("kiv")
    cache = llama.cache()
    llama.kiv(llama.ids[:, :50], past_key_values=cache)
    with pytest.raises(ENDINGS) as held:  # the traceback keeps the frames of the broken pass, as an interpreter does
        broken(llama, cache)
    if not cache_lives:
        del cache
    got = tower(pixels).last_hidden_state
    assert (got - expected).abs().max().item() <= 1e-4 * expected.abs().max().item()
    logits = llama.kiv(llama.ids, past_key_values=llama.stock_cache()).logits
    right = llama.stock(llama.ids, past_key_values=llama.stock_cache()).logits
    assert (logits - right).abs().max().item() <= llama.rounding()
    assert held.value is not None


def test_a_module_around_both_does_not_prolong_it(llama: TinyModel) -> None:
    """As in an agent that is a module itself, catches the failure and asks another of its models."""
    tower, pixels = vision(), torch.ones(1, 3, 8, 8)
    expected = tower(pixels).last_hidden_state
    tower.set_attn_implementation("kiv")

    class Both(torch.nn.Module):
        def forward(self) -> Any:
            with pytest.raises(Stop):
                in_attention(llama, llama.cache())
            return tower(pixels).last_hidden_state

    llama.kiv(llama.ids[:, :50], past_key_values=llama.cache())
    got = Both()()
    assert (got - expected).abs().max().item() <= 1e-4 * expected.abs().max().item()


def test_the_same_model_with_images_goes_on_with_another_cache() -> None:
    torch.manual_seed(0)
    text = {
        "model_type": "llama", "vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.3,
    }  # fmt: skip
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **VISION}, text_config=text, image_token_index=39
    )
    model = Llava(config).eval()
    ids = torch.cat([torch.full((1, 4), 39), torch.arange(2, 22)[None]], dim=1)
    inputs = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 8, 8)}
    expected = model(**inputs).logits
    model.set_attn_implementation("kiv")
    kiv = AttentionInterface()["kiv"]

    def broken(module: Any, query: torch.Tensor, key: torch.Tensor, *arguments: Any, **kwargs: Any) -> Any:
        if key.shape[2] == ids.shape[1]:
            raise Stop
        return kiv(module, query, key, *arguments, **kwargs)

    with registered(attention=broken), pytest.raises(Stop):
        model(**inputs, past_key_values=KIVCache(config))
    for cache in (None, KIVCache(config)):
        logits = model(**inputs, past_key_values=cache).logits
        assert (logits - expected).abs().max().item() <= 1e-4 * expected.abs().max().item()


@pytest.mark.parametrize("take", [lambda k, v: (k.clone(), v.clone()), lambda k, v: (k * 1, v)])
def test_while_it_runs_changed_tensors_are_refused(gemma3: TinyModel, take: Callable[..., Any]) -> None:
    """The tokens that wait are this pass's own: a number over them would be wrong."""
    cache = gemma3.cache()
    gemma3.kiv(gemma3.ids[:, :50], past_key_values=cache)
    with attention_gets(take), pytest.raises(KIVUnsupportedError, match="Gemma3Attention"):
        gemma3.kiv(gemma3.ids[:, 50:], past_key_values=cache)


def test_no_frame_is_kept_of_a_pass_that_went_well(llama: TinyModel) -> None:
    cache = llama.cache()
    feed(llama.kiv, llama.ids, cache, [50, 46])
    gone = weakref.ref(cache)
    gc.disable()
    try:
        del cache
        assert gone() is None
    finally:
        gc.enable()
