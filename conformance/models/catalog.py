"""Which model types there are, and a tiny random model of each."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .corrections import corrections_for
from .shrink import shrink

_ClassNames = dict[str, "str | tuple[str, ...]"]
_CAUSAL: _ClassNames = dict(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
# Models of text and images (or sound) whose decoder is reached with text alone.
_MULTIMODAL: _ClassNames = {
    **getattr(modeling_auto, "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES", {}),
    **modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
}
# Models of sound and text; the first mapping has text-to-text models too.
_SPEECH: _ClassNames = {
    **{
        name: modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES[name]
        for name in ("audioflamingo3", "musicflamingo")
    },
    **modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
}
_ALL: _ClassNames = {**_SPEECH, **_MULTIMODAL, **_CAUSAL}
# Types of which only a part takes text alone: module and class of that part, and why it stands for the whole.
_TEXT_PARTS: dict[str, tuple[str, str, str]] = {
    "blip": ("blip.modeling_blip_text", "BlipTextLMHeadModel", "the whole takes no cache"),
    "blip-2": ("opt", "OPTForCausalLM", "the whole takes a cache in generate only"),
    "fast_vlm": ("qwen2", "Qwen2ForCausalLM", "the vision tower needs the package timm"),
    "gemma3n": ("gemma3n", "Gemma3nForCausalLM", "the vision tower needs the package timm"),
    "inkling_mm_model": ("inkling", "InklingForCausalLM", "the vision tower needs the package scipy"),
    "instructblip": ("opt", "OPTForCausalLM", "the whole takes a cache in generate only"),
    "instructblipvideo": ("opt", "OPTForCausalLM", "the whole takes a cache in generate only"),
    "kosmos-2": ("kosmos2.modeling_kosmos2", "Kosmos2TextForCausalLM", "the whole demands an image"),
    "perception_lm": ("llama", "LlamaForCausalLM", "the vision tower needs the package timm"),
    "qwen2_5_omni": (
        "qwen2_5_omni", "Qwen2_5OmniThinkerForConditionalGeneration", "the whole has generate and no forward"
    ),
    "qwen3_omni_moe": (
        "qwen3_omni_moe", "Qwen3OmniMoeThinkerForConditionalGeneration", "the whole has generate and no forward"
    ),
}  # fmt: skip


def text_part(model_type: str) -> str:
    """Return the class that stands for the type and why, "" if the whole model is fed."""
    if model_type not in _TEXT_PARTS:
        return ""
    _, name, why = _TEXT_PARTS[model_type]
    return f"{name}: {why}"


def causal_types() -> list[str]:
    """Return every model type of transformers' causal-LM mapping."""
    return sorted(_CAUSAL)


def multimodal_types() -> list[str]:
    """Return model types that take text beside something else and are not in the causal-LM mapping."""
    return sorted({*_MULTIMODAL, *_SPEECH} - set(_CAUSAL))


def model_class(model_type: str) -> Any:
    """Return the class that the automatic mapping names, the first one if there are several, or its text part."""
    if model_type in _TEXT_PARTS:
        module, name, _ = _TEXT_PARTS[model_type]
        return getattr(import_module(f"transformers.models.{module}"), name)
    names = _ALL[model_type]
    return getattr(transformers, names if isinstance(names, str) else names[0])


def tiny_config(model_type: str) -> Any:
    """Return a configuration of a tiny decoder."""
    config_class = CONFIG_MAPPING[model_type]
    config = config_class(**shrink(config_class, corrections_for(model_type)))
    if hasattr(config, "is_decoder") and not getattr(config, "is_encoder_decoder", False):
        config.is_decoder = True
    return _part_of(config, model_class(model_type)) or config


def _part_of(config: Any, cls: Any) -> Any:
    """Return the part of `config` that `cls` is made from, None if it is none."""
    if isinstance(config, cls.config_class):
        return None
    return next((part for part in _parts(config) if isinstance(part, cls.config_class)), None)


def _parts(config: Any) -> list[Any]:
    return [part for name in config.sub_configs if (part := getattr(config, name, None)) is not None]


def tiny_model(model_type: str, attention: str | None, *, dtype: torch.dtype = torch.float32, seed: int = 5) -> Any:
    """Return a random model in evaluation mode; equal arguments give equal weights.

    Parameters
    ----------
    attention : str or None
        What a user passes as ``attn_implementation``.
    """
    torch.manual_seed(seed)
    config = tiny_config(model_type)
    # The default multiplies matrices of experts in one kernel, which has no float64.
    kwargs = {"attn_implementation": attention, "experts_implementation": "eager"}
    return model_class(model_type)._from_config(config, **kwargs).eval().to(dtype)
