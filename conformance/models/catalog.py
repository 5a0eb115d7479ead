"""Which model types there are, and a tiny random model of each."""

from __future__ import annotations

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


def causal_types() -> list[str]:
    """Every model type of transformers' causal-LM mapping."""
    return sorted(_CAUSAL)


def multimodal_types() -> list[str]:
    """Model types that take text beside something else and are not in the causal-LM mapping."""
    return sorted(set(_MULTIMODAL) - set(_CAUSAL))


def model_class(model_type: str) -> Any:
    """Return the class that the automatic mapping names, the first one if there are several."""
    names = _CAUSAL.get(model_type) or _MULTIMODAL[model_type]
    return getattr(transformers, names if isinstance(names, str) else names[0])


def tiny_config(model_type: str) -> Any:
    """Return a configuration of a tiny decoder."""
    config_class = CONFIG_MAPPING[model_type]
    config = config_class(**shrink(config_class, corrections_for(model_type)))
    if hasattr(config, "is_decoder") and not getattr(config, "is_encoder_decoder", False):
        config.is_decoder = True
    cls = model_class(model_type)
    text = (getattr(config, "sub_configs", None) or {}).get("text_config")
    if text is not None and cls.config_class is text:
        return config.get_text_config()
    return config.decoder if model_type in ("musicgen", "musicgen_melody") else config


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
