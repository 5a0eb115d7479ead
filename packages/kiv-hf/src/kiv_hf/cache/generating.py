"""What `generate` does while it reads a prompt into a KIVCache, and a cache is not told."""

from __future__ import annotations

from contextlib import ExitStack
from functools import wraps
from typing import TYPE_CHECKING, Any, Protocol

from transformers import GenerationMixin

from ..rope.longrope import WatchedCache, one_set_of_factors, tokens_given

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    import torch

_MARK = "tells_kiv_cache"


class PromptedCache(WatchedCache, Protocol):
    """A cache that wants to know of a prompt that comes in several forward passes."""

    def chunked_prefill(self, prompt_tokens: int) -> AbstractContextManager[None]:
        """Take the next `prompt_tokens` tokens for one prompt, whatever passes they come in."""
        ...


def tell_of_prompts(cache_class: type[PromptedCache]) -> None:
    """Make `generate` tell caches of `cache_class` of a prompt, and read it with one set of rotary factors.

    The method of `GenerationMixin` that reads a prompt is wrapped: for other caches it does what it did. Calling this
    again changes nothing.
    """
    generation: Any = GenerationMixin
    stock: Callable[..., Any] = generation._prefill
    if hasattr(stock, _MARK):
        return

    @wraps(stock)
    def prefill(
        self: Any, input_ids: torch.Tensor, generation_config: Any, model_kwargs: dict[str, Any], **more: Any
    ) -> Any:
        cache, chunk = model_kwargs.get("past_key_values"), generation_config.prefill_chunk_size
        with ExitStack() as stack:
            if isinstance(cache, cache_class) and (chunk is not None or cache.rope.limits):
                total, whole = _text(cache.get_seq_length(), input_ids, generation_config, model_kwargs)
                if cache.rope.limits:
                    positions = model_kwargs.get("position_ids")
                    stack.enter_context(one_set_of_factors(self, cache, cache_class, total, whole, positions))
                new = total - cache.get_seq_length()
                if chunk is not None and new > chunk:  # a last chunk of one token is no decode step then
                    stack.enter_context(cache.chunked_prefill(new))
            return stock(self, input_ids, generation_config, model_kwargs, **more)

    setattr(prefill, _MARK, True)
    generation._prefill = prefill


def _text(held: int, input_ids: torch.Tensor, generation_config: Any, model_kwargs: dict[str, Any]) -> tuple[int, bool]:
    """Return how many tokens the text has with the prompt, and whether `generate` was given all of it."""
    mask: torch.Tensor | None = model_kwargs.get("attention_mask")
    given = tokens_given(input_ids, model_kwargs)
    # As `_prefill` tells whether it is given the whole text or the new tokens alone.
    whole = given == (getattr(generation_config, "_mask_length", -1) if mask is None else mask.shape[1])
    return given if whole else held + given, whole
