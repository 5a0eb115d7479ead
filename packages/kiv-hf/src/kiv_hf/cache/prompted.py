"""A cache that knows of a prompt in several forward passes: from its user, or from `generate` itself."""

from __future__ import annotations

from contextlib import ExitStack
from functools import wraps
from typing import TYPE_CHECKING, Any

from kiv_reference.checks import integer
from kiv_reference.errors import KIVUsageError, refuse
from transformers import GenerationMixin

from ..rope.longrope import one_set_of_factors, tokens_given
from .mending import MendingCache

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    import torch

    from ..rope.watch import Watch

_MARK = "tells_kiv_cache"


class PromptedCache(MendingCache):
    """What `KIVCache` does so that a prompt is one, in whatever passes it comes."""

    @property
    def rope(self) -> Watch:
        """Which rotary factors the tokens have, where they depend on the length of the text."""
        return self.handshake.rope

    def chunked_prefill(self, prompt_tokens: int) -> AbstractContextManager[None]:
        """Take the next `prompt_tokens` tokens for one prompt, in however many forward passes they come (SPEC 7.6).

        Only the end of a prompt attends exactly under ``prefill="retrieve"`` or ``"window"`` (SPEC 7.4), and the cache
        cannot know which pass brings it::

            with cache.chunked_prefill(ids.shape[1]):
                for chunk in ids.split(512, dim=1):
                    model(chunk, past_key_values=cache)

        Without it every pass of several tokens is a prompt of its own. `generate` with `prefill_chunk_size` does it by
        itself. When it ends, however that is, nothing of it stays; tokens beyond the prompt are none of its. A fork
        knows nothing of it.

        Parameters
        ----------
        prompt_tokens : int, >= 1
            Tokens still to be fed, padding included.

        Raises
        ------
        KIVUsageError
            `prompt_tokens` is no positive integer.
        """
        prompt_tokens = integer("prompt_tokens", prompt_tokens)
        if prompt_tokens < 1:
            rule = "chunked_prefill needs the number of tokens to be fed (SPEC 7.6)"
            raise refuse(KIVUsageError, rule, prompt_tokens, "Pass 1 or more.")
        return self.handshake.prompt.until(self.get_seq_length() + prompt_tokens)


def follow_generate() -> None:
    """Make `generate` tell a `PromptedCache` of its prompt, and read that with one set of rotary factors.

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
            if isinstance(cache, PromptedCache) and (chunk is not None or cache.rope.limits):
                total, whole = _text(cache.get_seq_length(), input_ids, generation_config, model_kwargs)
                if cache.rope.limits:
                    positions = model_kwargs.get("position_ids")
                    stack.enter_context(one_set_of_factors(self, cache, PromptedCache, total, whole, positions))
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
