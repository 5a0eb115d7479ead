"""Models with one set of rotary factors for short texts and one for long texts, as Phi-3 has them.

Keys computed with the short factors are of no use once the text is longer. Phi-3, PhiMoE and Phi-4 multimodal therefore
drop the cache in `generate`, the user's too, and go on with a stock one. Here the KIVCache is kept: where the factors
change it is reset, and the same forward pass reads the whole text into it again.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from transformers.utils import logging

from .for_length import tell_length
from .limits import limits

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    import torch
    from transformers import PreTrainedConfig

    from .watch import Watch

_logger = logging.get_logger(__name__)

DROPS_THE_CACHE = {
    "phi3": ("transformers.models.phi3.modeling_phi3", "Phi3ForCausalLM"),
    "phimoe": ("transformers.models.phimoe.modeling_phimoe", "PhimoeForCausalLM"),
    "phi4_multimodal": ("transformers.models.phi4_multimodal.modeling_phi4_multimodal", "Phi4MultimodalForCausalLM"),
}
"""Type of a model -> modeling file and class whose `prepare_inputs_for_generation` drops the cache."""

_MARK = "keeps_kiv_cache"


class WatchedCache(Protocol):
    """A cache that knows which rotary factors its tokens have."""

    @property
    def rope(self) -> Watch:
        """Which rotary factors the tokens have, where they depend on the length of the text."""
        ...

    def get_seq_length(self) -> int:
        """Return the tokens that the cache holds."""
        ...

    def reset(self) -> None:
        """Empty every layer."""
        ...


def longest_short_text(config: PreTrainedConfig) -> int | None:
    """Return up to how many tokens a model uses its short factors, or None if it has one set of factors."""
    return next((limit.tokens for limit in limits(config) if not limit.dynamic), None)


def keep_cache(config: PreTrainedConfig, cache_class: type[WatchedCache]) -> None:
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
    short = longest_short_text(config.get_text_config(decoder=True))
    if short is not None:
        _logger.warning_once(
            f"This model has other rotary factors for texts of more than {short} tokens. A call of `generate` that is "
            "given the whole text and crosses that length resets its KIVCache once and reads the text into it again, "
            "which takes as long as a new prompt. Where a text that is fed in pieces of your own crosses it, or one "
            "of which `generate` is given the new tokens alone, earlier tokens keep the factors they had, with any "
            "cache: feed such a text under kiv_hf.rope_for_length(model, tokens)."
        )
    # The model that generates drops the cache, not its text part: LLaVA around a Phi-3 keeps it.
    if config.model_type in DROPS_THE_CACHE:
        module, name = DROPS_THE_CACHE[config.model_type]
        _wrap(getattr(import_module(module), name), cache_class)


def _wrap(model_class: Any, cache_class: type[WatchedCache]) -> None:
    stock: Callable[..., dict[str, Any]] = model_class.prepare_inputs_for_generation
    if hasattr(stock, _MARK):
        return

    drops = (model_class.__module__, model_class.__name__) in DROPS_THE_CACHE.values()

    @wraps(stock)
    def prepare(self: Any, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        cache = kwargs.get("past_key_values")
        if args or not isinstance(cache, cache_class):
            return stock(self, input_ids, *args, **kwargs)
        new, held, positions = kwargs.get("next_sequence_length"), cache.get_seq_length(), kwargs.get("position_ids")
        total = held + (new if new is not None else tokens_given(input_ids, kwargs))
        if _factors_change(cache.rope, held, total, positions) and total == input_ids.shape[1]:
            cache.reset()
            # As in a first pass, that is with the images and sounds that the text speaks of.
            kwargs.update(next_sequence_length=None, is_first_iteration=True)
        if not drops:
            return stock(self, input_ids, **kwargs)
        # The method of the class above: that of the model's own class does nothing else than drop the cache.
        above = cast("Any", super(model_class, self))
        return above.prepare_inputs_for_generation(input_ids, **kwargs)

    setattr(prepare, _MARK, True)
    model_class.prepare_inputs_for_generation = prepare


@contextmanager
def one_set_of_factors(
    model: Any,
    cache: WatchedCache,
    cache_class: type[WatchedCache],
    total: int,
    whole: bool,
    positions: torch.Tensor | None,
) -> Generator[None]:
    """Let `generate` read a prompt with one set of factors, in chunks (`prefill_chunk_size`) and in later turns.

    Parameters
    ----------
    model : PreTrainedModel
        One whose factors change with the length of the text.
    cache : instance of `cache_class`
    total : int
        Tokens of the text with the prompt.
    whole : bool
        Whether `generate` was given all of it.
    positions : int64 [B, total], optional
    """
    if _factors_change(cache.rope, cache.get_seq_length(), total, positions) and whole:
        cache.reset()
    _wrap(type(model), cache_class)
    with tell_length(model, total - cache.rope.padding):
        yield


def _factors_change(rope: Watch, held: int, total: int, positions: torch.Tensor | None) -> bool:
    """Tell whether a pass that brings a cache of `held` tokens to `total` has other factors than those."""
    if held == 0 or rope.changes(total):
        # The furthest position counts, not the length: every row of the batch may begin with padding.
        rope.padding = 0 if positions is None else max(0, total - 1 - int(positions.max()))
    return held > 0 and rope.changes(total)


def tokens_given(input_ids: torch.Tensor, kwargs: dict[str, Any]) -> int:
    """Return how many tokens `generate` hands over, as ids or as embeddings."""
    embeddings: torch.Tensor | None = kwargs.get("inputs_embeds")
    return input_ids.shape[1] if embeddings is None or input_ids.shape[1] > 0 else embeddings.shape[1]
