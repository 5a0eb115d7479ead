"""Tiny models in float64 that have other rotary factors for longer texts, each with a twin that uses KIV."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import Any

import torch
from hf_models import EXACT, VOCABULARY
from kiv_hf import KIVCache, KIVConfig, rope_for_length, use_kiv
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

SHORT = 24
"""Longest text with the short factors."""
NEW = 16
TYPES = ["phi3", "phimoe", "phi4_multimodal"]
IMAGE_TOKEN = 90
ROPE: dict[str, Any] = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.2, 1.5, 2.0],
    "long_factor": [3.0, 5.0, 9.0, 14.0], "factor": 8.0,
}  # fmt: skip
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.35, "max_position_embeddings": 8 * SHORT,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": [VOCABULARY - 1],
}  # fmt: skip
TYPE_SIZES: dict[str, Any] = {
    "phi3": {"original_max_position_embeddings": SHORT},
    "phimoe": {"num_local_experts": 4},
    "phi4_multimodal": {
        "original_max_position_embeddings": SHORT,
        "vision_config": {
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 56, "crop_size": 56, "patch_size": 14, "image_token_id": IMAGE_TOKEN,
        },
        "audio_config": {
            "hidden_size": 16, "intermediate_size": 16, "num_blocks": 2, "num_attention_heads": 2, "input_size": 16,
            "ext_pw_out_channel": 16, "depthwise_separable_out_channel": 16, "nemo_conv_channels": 8,
            "audio_token_id": IMAGE_TOKEN + 1,
        },
    },
}  # fmt: skip
PHIMOE_ROPE = {"original_max_position_embeddings": SHORT, "short_mscale": 1.1, "long_mscale": 1.4}
IDS = torch.randint(2, IMAGE_TOKEN, (1, 2 * SHORT), generator=torch.Generator().manual_seed(7))


def forget_warnings() -> None:
    """Let transformers warn again of what it has warned of."""
    once: Any = logging.Logger.__dict__["warning_once"]
    once.cache_clear()


@dataclass
class Phi:
    """A tiny model in float64 without KIV, its twin with KIV, and what each of them generates."""

    stock: Any
    kiv: Any

    def cache(self, config: KIVConfig = EXACT) -> KIVCache:
        return KIVCache(self.kiv.config, config)

    def truth(self, ids: torch.Tensor, **settings: Any) -> Any:
        return self.generate(self.stock, ids, use_cache=False, **settings)

    def truth_under(self, tokens: int, ids: torch.Tensor) -> Any:
        with rope_for_length(self.stock, tokens):
            return self.truth(ids)

    def generate(self, model: Any, ids: torch.Tensor | None, **settings: Any) -> Any:
        settings = {"max_new_tokens": NEW, "do_sample": False, **settings}
        return model.generate(ids, return_dict_in_generate=True, output_scores=True, **settings)


def build(model_type: str, rope: dict[str, Any] | None = None, **sizes: Any) -> Phi:
    if rope is None:
        rope = ROPE | (PHIMOE_ROPE if model_type == "phimoe" else {})

    def model() -> Any:
        fields = copy.deepcopy(SIZES | TYPE_SIZES.get(model_type, {}) | sizes | {"rope_parameters": rope})
        config = CONFIG_MAPPING[model_type](**fields)
        torch.manual_seed(5)
        built = AutoModelForCausalLM.from_config(config).eval().double()
        built.config._experts_implementation = "eager"  # the grouped products of the default take no float64
        built.generation_config.eos_token_id = None
        return built

    return Phi(model(), use_kiv(model()))


def assert_same(got: Any, expected: Any) -> None:
    assert torch.equal(got.sequences, expected.sequences)
    for one, other in zip(got.scores, expected.scores, strict=True):  # float32, as generate hands them out
        finite = other.isfinite()
        assert (one[finite] - other[finite]).abs().max() <= 1e-5 * other[finite].abs().max()
