"""Routing a model's attention through KIV: the one call that works for every model."""

from __future__ import annotations

from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.utils import logging

from .attention.function import kiv_attention
from .attention.masks import kiv_mask
from .guards.names import NAME
from .patches import patch_attention
from .patches.class_tables import register_tables


def register_attention() -> None:
    """Make the name "kiv" known to transformers; the last registration of a name holds."""
    AttentionInterface.register(NAME, kiv_attention)
    AttentionMaskInterface.register(NAME, kiv_mask)
    register_tables()


def use_kiv(model: PreTrainedModel) -> PreTrainedModel:
    """Route the attention of `model` through KIV; caches of other kinds keep working.

    For most models it is ``model.set_attn_implementation("kiv")``. Models whose own code computes attention (GPT-J,
    Bloom, Falcon and others) also get their attention classes replaced, in this instance alone.

    Parameters
    ----------
    model : PreTrainedModel
        Any model; it is changed in place.

    Returns
    -------
    PreTrainedModel
        `model` itself.
    """
    if patch_attention(model) == 0:
        model.set_attn_implementation(NAME)
        return model
    # transformers declines to set the name on such a model and says so; the classes are replaced, so it may be set.
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model.set_attn_implementation(NAME)
    finally:
        logging.set_verbosity(level)
    decoder = model.config.get_text_config(decoder=True)
    decoder._attn_implementation = NAME  # pyright: ignore[reportPrivateUsage]
    if not any(module.config is decoder for module in model.modules() if isinstance(module, PreTrainedModel)):
        # Of encoder and decoder fields side by side transformers made a copy, which no module reads.
        model.config._attn_implementation = NAME  # pyright: ignore[reportPrivateUsage]
    return model
