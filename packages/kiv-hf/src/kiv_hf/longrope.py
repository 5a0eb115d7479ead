"""Models with one set of rotary factors for short texts and one for long texts, as Phi-3 has them.

Keys computed with the short factors are of no use once the text is longer. Phi-3, PhiMoE and Phi-4 multimodal therefore
drop the cache in `generate`, the user's too, and go on with a stock one. Here the KIVCache is kept: where the factors
change it is reset, and the same forward pass reads the whole text into it again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.utils import logging

_logger = logging.get_logger(__name__)

DROPS_THE_CACHE = {
    "phi3": ("transformers.models.phi3.modeling_phi3", "Phi3ForCausalLM"),
    "phimoe": ("transformers.models.phimoe.modeling_phimoe", "PhimoeForCausalLM"),
    "phi4_multimodal": ("transformers.models.phi4_multimodal.modeling_phi4_multimodal", "Phi4MultimodalForCausalLM"),
}
"""Type of a model -> modeling file and class whose `prepare_inputs_for_generation` drops the cache."""

_MARK = "keeps_kiv_cache"

_READS_AGAIN = (
    "A call of `generate` that is given the whole text and crosses that length resets its KIVCache once and reads the "
    "text into it again, which takes as long as a new prompt. Forward passes of your own, `prefill_chunk_size`, and "
    "`generate` with the new tokens only leave the factors of earlier tokens as they were, with any cache: feed a text "
    "that crosses the length in one piece."
)
_KEEPS_FACTORS = (
    "Where a text crosses that length, earlier tokens keep the factors they had, with any cache: feed such a text in "
    "one piece."
)


def longest_short_text(config: PreTrainedConfig) -> int | None:
    """Return up to how many tokens a model uses its short factors, or None if it has one set of factors."""
    parameters: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    if parameters.get("rope_type") != "longrope":
        return None
    return parameters["original_max_position_embeddings"]


def keep_cache(config: PreTrainedConfig, cache_class: type[Cache]) -> None:
    """Make `generate` keep caches of `cache_class` on models of this configuration, and warn of what it will do.

    The method that drops the cache is wrapped in its class: for other caches it does what it did. Calling this again
    changes nothing.

    Parameters
    ----------
    config : PreTrainedConfig
        The model's configuration.
    cache_class : type of Cache
        The caches to keep.
    """
    # The model that generates drops the cache, not its text part: LLaVA around a Phi-3 keeps it.
    drops = config.model_type in DROPS_THE_CACHE
    short = longest_short_text(config.get_text_config(decoder=True))
    if short is not None:
        _logger.warning_once(
            f"This model has other rotary factors for texts of more than {short} tokens. "
            + (_READS_AGAIN if drops else _KEEPS_FACTORS)
        )
    if drops:
        module, name = DROPS_THE_CACHE[config.model_type]
        _wrap(getattr(import_module(module), name), cache_class)


def _wrap(model_class: Any, cache_class: type[Cache]) -> None:
    stock: Callable[..., dict[str, Any]] = model_class.prepare_inputs_for_generation
    if hasattr(stock, _MARK):
        return

    @wraps(stock)
    def prepare(self: Any, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        cache = kwargs.get("past_key_values")
        if args or not isinstance(cache, cache_class):
            return stock(self, input_ids, *args, **kwargs)
        if _factors_change(self.config, cache, input_ids, kwargs):
            cache.reset()
            # As in a first pass, that is with the images and sounds that the text speaks of.
            kwargs.update(next_sequence_length=None, is_first_iteration=True)
        # The method of the class above: that of the model's own class does nothing else than drop the cache.
        return super(model_class, self).prepare_inputs_for_generation(input_ids, **kwargs)

    setattr(prepare, _MARK, True)
    model_class.prepare_inputs_for_generation = prepare


def _factors_change(config: PreTrainedConfig, cache: Cache, input_ids: torch.Tensor, kwargs: dict[str, Any]) -> bool:
    """Whether the tokens held have short factors and the next pass has long ones, and the whole text is at hand."""
    short, held, new = longest_short_text(config), cache.get_seq_length(), kwargs.get("next_sequence_length")
    tokens = input_ids.shape[1]
    if short is None or tokens <= short or held == 0 or new is None or tokens != held + new:
        return False
    positions: torch.Tensor | None = kwargs.get("position_ids")
    if positions is None or positions.shape[-1] != tokens:
        return held <= short
    # The furthest position counts, not the length: every row of the batch may begin with padding.
    return int(positions[..., :held].max()) < short <= int(positions.max())
