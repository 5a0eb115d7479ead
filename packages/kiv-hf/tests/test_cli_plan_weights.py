"""Weights that ``kiv plan`` predicts: what is held, what a step reads, and how wide they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cli_plan_configs import configs, llama
from kiv_hf.cli.sizes.model import model_sizes
from kiv_hf.cli.sizes.weights import Weights, saved_bits
from transformers import LlavaConfig


def test_weights_are_counted_once_and_by_kind() -> None:
    config = llama(tie_word_embeddings=True, num_hidden_layers=1)
    weights = model_sizes(config, torch.float32).weights
    maps = 32 * 64 + 2 * 32 * 32 + 64 * 32 + 3 * 32 * 48
    # The embedding is the output head too: read whole, and no token of the prompt but the last is multiplied by it.
    assert weights == Weights(50 * 32 + 3 * 32, maps, 50 * 32 + 3 * 32, maps, maps)
    assert weights.held_bytes(torch.bfloat16, 4.5) == round(2 * (50 * 32 + 3 * 32) + maps * 4.5 / 8)
    apart = model_sizes(llama(tie_word_embeddings=False, num_hidden_layers=1), torch.float32).weights
    assert (apart.plain, apart.read_plain) == (weights.plain + 50 * 32, weights.plain)


def test_of_experts_a_step_reads_those_that_a_token_is_sent_to() -> None:
    weights = model_sizes(configs()["experts"], torch.float32).weights
    experts = 4 * 4 * 3 * 32 * 48
    assert weights.linear - weights.read_linear == experts / 2


def test_a_tower_for_images_is_held_and_not_read() -> None:
    text = llama(num_hidden_layers=2)
    vision: dict[str, Any] = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
        "patch_size": 4,
    }  # fmt: skip
    sizes = model_sizes(LlavaConfig(vision_config=vision, text_config=text, image_token_index=49), torch.float32)
    alone = model_sizes(text, torch.float32)
    assert sizes.layers == alone.layers
    assert sizes.weights.plain + sizes.weights.linear > alone.weights.plain + alone.weights.linear
    assert sizes.weights.read_linear == alone.weights.read_linear


@pytest.mark.parametrize(
    ("saved", "bits"),
    [
        (None, None),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4.5),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True}, 4.127),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 8),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 4 + 20 / 128),
        ({"quant_method": "awq", "bits": 4, "group_size": -1}, 4),
        ({"quant_method": "fp8"}, 8),
        ({"quant_method": "mxfp4"}, 4.25),
        ({"quant_method": "quanto", "weights": "int2"}, 2),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"num_bits": 8}}}},
            8,
        ),
    ],
)
def test_bits_of_quantised_weights(saved: dict[str, Any] | None, bits: float | None) -> None:
    config = llama()
    config.quantization_config = saved  # pyright: ignore[reportAttributeAccessIssue]
    assert saved_bits(config) == bits


def test_an_unknown_quantisation_is_named() -> None:
    config = llama()
    config.quantization_config = {"quant_method": "spectral"}  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(LookupError, match="spectral"):
        saved_bits(config)


def test_what_is_not_converted_stays_dense() -> None:
    config = llama()
    whole = model_sizes(config, torch.float32).weights
    config.quantization_config = {  # pyright: ignore[reportAttributeAccessIssue]
        "quant_method": "gptq", "bits": 4, "modules_to_not_convert": ["mlp.down_proj"]
    }  # fmt: skip
    some = model_sizes(config, torch.float32).weights
    assert whole.linear - some.linear == some.plain - whole.plain == 4 * 32 * 48
