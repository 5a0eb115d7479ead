"""A cache made for another model is refused at the first forward pass, by name, and nothing has changed by then."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hf_models import EXACT, TinyModel, feed, pair
from kiv_hf import KIVCache, use_kiv
from kiv_reference.errors import KIVUsageError
from transformers import (
    EncoderDecoderCache,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Speech2TextConfig,
    Speech2TextForConditionalGeneration,
)
from transformers.cache_utils import DynamicCache, DynamicSlidingWindowLayer, LinearAttentionLayer
from transformers.models.udop.modeling_udop import BaseModelOutputWithAttentionMask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LAYERS: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
OTHERS = {
    "Gemma 3": (
        lambda: Gemma3TextConfig(num_hidden_layers=6, sliding_window=32),
        "a cache of 6 layers, and a model of 3",
    ),
    "Gemma 3 of as many layers": (
        lambda: Gemma3TextConfig(num_hidden_layers=3, sliding_window=32, **LAYERS),
        "layer 0 is for a sliding window of 32 tokens, and a model whose layer 0 has full attention",
    ),
    "2 layers": (lambda: LlamaConfig(num_hidden_layers=2, **LAYERS), "a cache of 2 layers, and a model of 3"),
    "12 layers": (lambda: LlamaConfig(num_hidden_layers=12, **LAYERS), "a cache of 12 layers, and a model of 3"),
    "40 layers": (lambda: LlamaConfig(num_hidden_layers=40, **LAYERS), "a cache of 40 layers, and a model of 3"),
    "KV heads": (
        lambda: LlamaConfig(num_hidden_layers=3, **(LAYERS | dict[str, Any](num_key_value_heads=4))),
        "layer 0 is for num_key_value_heads=4, and a model whose layer 0 has num_key_value_heads=2",
    ),
    "query heads": (
        lambda: LlamaConfig(num_hidden_layers=3, **(LAYERS | dict[str, Any](num_attention_heads=8))),
        "layer 0 is for num_attention_heads=8, and a model whose layer 0 has num_attention_heads=4",
    ),
    "width": (
        lambda: LlamaConfig(num_hidden_layers=3, **(LAYERS | dict[str, Any](head_dim=16))),
        "layer 0 is for head_dim=16, and a model whose layer 0 has head_dim=8",
    ),
}


@pytest.fixture(scope="module")
def three() -> Iterator[TinyModel]:
    with torch.inference_mode():
        yield pair(LlamaConfig, LlamaForCausalLM, num_hidden_layers=3)


def empty_of_tokens(cache: Any) -> bool:
    return cache.lengths() == set() and not sum(cache.memory())


def empty(cache: Any) -> bool:
    return not any(layer.is_initialized or layer.get_seq_length() for layer in cache.layers) and not sum(cache.memory())


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("padded", [False, True])
def test_another_model_is_refused_before_anything_changes(three: TinyModel, name: str, padded: bool) -> None:
    config, says = OTHERS[name]
    cache = KIVCache(config(), EXACT)
    mask = torch.ones_like(three.ids)
    mask[0, :3] = 0
    with pytest.raises(KIVUsageError, match=says) as error:
        three.kiv(three.ids, past_key_values=cache, attention_mask=mask if padded else None)
    assert "KIVCache(model.config)" in str(error.value)
    assert empty(cache)


def test_a_window_of_another_length(gemma3: TinyModel) -> None:
    config = copy.deepcopy(gemma3.config)
    config.sliding_window = 13
    cache = KIVCache(config, EXACT)
    with pytest.raises(KIVUsageError, match=r"layer 0 is for a sliding window of 13 .* sliding window of 12 tokens"):
        gemma3.kiv(gemma3.ids, past_key_values=cache)
    assert empty(cache)


def test_a_layer_of_another_kind(gemma3: TinyModel) -> None:
    config = copy.deepcopy(gemma3.config)
    config.layer_types = ["full_attention", "full_attention", "sliding_attention"]
    cache = KIVCache(config, EXACT)
    with pytest.raises(KIVUsageError, match="layer 0 is for full attention"):
        gemma3.kiv(gemma3.ids, past_key_values=cache)
    assert empty(cache)


def four_dimensional(tokens: int, past: int = 0) -> torch.Tensor:
    """Return a mask of the caller's own: KIV is asked for none then."""
    return torch.ones(1, 1, tokens, past + tokens, dtype=torch.bool).tril(past)


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows and linear states that nobody may write to."""

    def touched(*_: Any, **__: Any) -> None:
        raise AssertionError

    for layer, names in ((DynamicSlidingWindowLayer, ["update"]), (LinearAttentionLayer, ["update_conv_state"])):
        for name in names:
            monkeypatch.setattr(layer, name, touched)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.usefixtures("untouched")
def test_a_mask_of_the_callers_own_hides_nothing(three: TinyModel, name: str) -> None:
    config, says = OTHERS[name]
    cache = KIVCache(config(), EXACT)
    with pytest.raises(KIVUsageError, match=says):
        three.kiv(three.ids, past_key_values=cache, attention_mask=four_dimensional(96))
    assert empty(cache)


def windows(layers: Any) -> TinyModel:
    return pair(
        Gemma3TextConfig, Gemma3ForCausalLM, num_hidden_layers=layers, sliding_window=12, query_pre_attn_scalar=8,
        layer_types=["sliding_attention"] * layers,
    )  # fmt: skip


@pytest.mark.parametrize("layers", [2, 12, 40])
def test_a_model_of_windows_alone(layers: int, untouched: None) -> None:
    """No KIV layer sees the pass."""
    model, cache = windows(3), KIVCache(Gemma3TextConfig(**windows(layers).config.to_dict()), EXACT)
    masks = {"full_attention": None, "sliding_attention": four_dimensional(96)}
    with pytest.raises(KIVUsageError, match=f"a cache of {layers} layers, and a model of 3"):
        model.kiv(model.ids, past_key_values=cache, attention_mask=masks)
    assert empty(cache)


def test_with_a_mask_of_the_callers_own_in_the_middle_of_a_text(three: TinyModel, gemma3: TinyModel) -> None:
    """Its first layer is a window."""
    cache, other = gemma3.cache(), gemma3.cache()
    for each in (cache, other):
        feed(gemma3.kiv, gemma3.ids[:, :50], each, [50])
    with pytest.raises(KIVUsageError, match="layer 0 is for a sliding window"):
        three.kiv(three.ids[:, :10], past_key_values=cache, attention_mask=four_dimensional(10, 50))
    assert cache.lengths() == {50}
    got, right = (gemma3.kiv(gemma3.ids[:, 50:], past_key_values=each).logits for each in (cache, other))
    assert torch.equal(got, right)


@pytest.mark.usefixtures("untouched")
def test_a_linear_state_is_not_touched_either() -> None:
    sizes: dict[str, Any] = {
        "vocab_size": 60,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
    }
    kinds = ["conv", "full_attention", "conv", "full_attention"]
    one, other = (
        Lfm2Config(**sizes, num_attention_heads=4, num_hidden_layers=layers, layer_types=kinds[:layers])
        for layers in (3, 4)
    )
    model = use_kiv(Lfm2ForCausalLM(one).eval())
    cache = KIVCache(other, EXACT)
    with pytest.raises(KIVUsageError, match="a cache of 4 layers, and a model of 3"):
        model(torch.arange(3, 13)[None], past_key_values=cache, attention_mask=four_dimensional(10))
    assert empty_of_tokens(cache)


GEMMA4: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "sliding_window": 12, "num_hidden_layers": 3, "hidden_size_per_layer_input": 0,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"], "attention_k_eq_v": True,
    "global_head_dim": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def gemma4() -> Any:
    return use_kiv(Gemma4ForCausalLM(Gemma4TextConfig(**GEMMA4)).eval())


def test_layers_that_differ_in_their_heads_are_read_one_by_one(gemma4: Any) -> None:
    """A configuration of the whole refuses to be asked for a number that its layers differ in."""
    ids, equal = torch.arange(3, 43)[None], Gemma4TextConfig(**GEMMA4)
    right = feed(gemma4, ids, KIVCache(gemma4.config, EXACT), [20, 20])
    assert torch.equal(feed(gemma4, ids, KIVCache(equal, EXACT), [20, 20]), right)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"global_head_dim": 32}, "layer 1 is for head_dim=32, and a model whose layer 1 has head_dim=16"),
        ({"global_head_dim": 8}, "layer 1 is for head_dim=8, and a model whose layer 1 has head_dim=16"),
        (
            {"num_global_key_value_heads": 1},
            "layer 1 is for num_key_value_heads=1, and a model whose layer 1 has num_key_value_heads=2",
        ),
    ],
)
def test_a_layer_with_other_heads(gemma4: Any, given: dict[str, Any], says: str) -> None:
    cache = KIVCache(Gemma4TextConfig(**(GEMMA4 | given)), EXACT)
    with pytest.raises(KIVUsageError, match=says):
        gemma4(torch.arange(3, 43)[None], past_key_values=cache)
    assert empty(cache)


def test_a_refused_cache_serves_its_own_model_still(three: TinyModel, llama: TinyModel) -> None:
    cache = llama.cache()
    with pytest.raises(KIVUsageError, match="a cache of 2 layers, and a model of 3"):
        three.kiv(three.ids, past_key_values=cache)
    logits = feed(llama.kiv, llama.ids, cache, [50, 46])
    right = feed(llama.stock, llama.ids, llama.stock_cache(), [50, 46])
    assert (logits - right).abs().max().item() <= llama.rounding()
    with pytest.raises(KIVUsageError, match="a cache of 2 layers, and a model of 3"):  # in the middle of a text, too
        three.kiv(three.ids[:, :1], past_key_values=cache)
    assert cache.lengths() == {96}


@pytest.mark.parametrize("equal", [
    copy.deepcopy,
    lambda config: type(config).from_dict(config.to_dict() | {"attn_implementation": "kiv"}),
], ids=["deepcopy", "from_dict"])  # fmt: skip
def test_an_equal_configuration_serves(tiny: TinyModel, equal: Callable[..., Any]) -> None:
    cache = KIVCache(equal(tiny.config), EXACT)
    logits = feed(tiny.kiv, tiny.ids, cache, [50, 46])
    right = feed(tiny.stock, tiny.ids, tiny.stock_cache(), [50, 46])
    assert (logits - right).abs().max().item() <= tiny.rounding()


SPEECH: dict[str, Any] = {
    "vocab_size": 97, "d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "decoder_layers": 2,
    "encoder_layers": 3, "decoder_attention_heads": 4, "encoder_attention_heads": 2, "init_std": 0.3,
}  # fmt: skip


def test_only_the_decoder_of_an_encoder_decoder_counts() -> None:
    """transformers gives the cache a copy of its configuration, and the model reads one with both parts' fields."""
    torch.manual_seed(5)
    model = Speech2TextForConditionalGeneration(Speech2TextConfig(**SPEECH)).eval()
    states = BaseModelOutputWithAttentionMask(last_hidden_state=torch.randn(1, 6, 32))
    ids = torch.arange(3, 43)[None]

    def run(cache: Any) -> torch.Tensor:
        with torch.inference_mode():
            pieces = [
                model(decoder_input_ids=piece, encoder_outputs=states, past_key_values=cache).logits
                for piece in ids.split(20, dim=1)
            ]
        return torch.cat(pieces, dim=1)

    right = run(EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache()))
    use_kiv(model)
    got = run(EncoderDecoderCache(KIVCache(model.config, EXACT), DynamicCache()))
    assert (got - right).abs().max().item() <= 1e-4 * right.abs().max().item()
    other = Speech2TextConfig(**(SPEECH | dict[str, Any](decoder_layers=3)))
    other._attn_implementation = "kiv"
    with pytest.raises(KIVUsageError, match="a cache of 3 layers, and a model of 2"):
        run(EncoderDecoderCache(KIVCache(other, EXACT), DynamicCache()))
