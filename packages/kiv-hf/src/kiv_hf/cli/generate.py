"""Reading a prompt in chunks and writing an answer token by token, with the clock running."""

from __future__ import annotations

import inspect
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch

from ..cache.kiv_cache import KIVCache
from ..rope.limits import limits, same_factors_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True)
class Run:
    """A prompt that was read and an answer that was written.

    Attributes
    ----------
    prompt_tokens : int
    answer : list of int
        Token ids, the one that ended the answer included.
    prefill_s : float
        Seconds that reading took.
    step_s : list of float
        Seconds of each decode step; the first token of the answer needs none.
    """

    prompt_tokens: int
    answer: list[int]
    prefill_s: float
    step_s: list[float]


@torch.no_grad()
def prefill(
    model: Any, ids: torch.Tensor, cache: Any, chunk_tokens: int, on_chunk: Callable[[int], None] = lambda _: None
) -> torch.Tensor:
    """Feed a prompt to the model.

    Parameters
    ----------
    ids : int64 [1, T]
    cache : Cache
        Of transformers or of KIV; it holds the prompt afterwards.
    on_chunk : called with the number of tokens read, after each chunk

    Returns
    -------
    Tensor [1, V], the logits of the last token.
    """
    logits = torch.empty(0, device=ids.device)
    with cache.chunked_prefill(ids.shape[1]) if isinstance(cache, KIVCache) else nullcontext():
        for part in cast("tuple[torch.Tensor, ...]", ids.split(chunk_tokens, dim=1)):
            logits = _step(model, part, cache)
            on_chunk(part.shape[1])
    return logits


@torch.no_grad()
def decode(
    model: Any, logits: torch.Tensor, cache: Any, max_new_tokens: int, stop: frozenset[int]
) -> Iterator[tuple[int, float | None]]:
    """Write the answer greedily.

    Parameters
    ----------
    logits : [1, V]
        What `prefill` returned.
    stop : token ids that end the answer

    Yields
    ------
    token id, and the seconds of the decode step that gave it; None for the first, which the prefill gave. The last
    token is one of `stop`, unless there was no room for it.
    """
    token, seconds = int(logits.argmax(dim=-1)), None
    for remaining in reversed(range(max_new_tokens)):
        yield token, seconds
        if token in stop or not remaining:
            return
        begin = time.perf_counter()
        logits = _step(model, torch.tensor([[token]], device=logits.device), cache)
        token = int(logits.argmax(dim=-1))  # waits for the device, so that the clock sees all of the step
        seconds = time.perf_counter() - begin


@dataclass(frozen=True)
class Part:
    """A part of an answer that the model writes with one set of rotary factors.

    Attributes
    ----------
    new_tokens : int
    rope_tokens : int
        Length of the text that the factors are for (`rope_for_length`).
    """

    new_tokens: int
    rope_tokens: int


def parts(model: Any, prompt_tokens: int, max_new_tokens: int) -> Iterator[Part]:
    """Divide an answer where the rotary factors change; before each part but the first the text is read again.

    Most models have one set of factors: one part. The last token of an answer is not fed.
    """
    where = limits(model.config.get_text_config(decoder=True))
    longest, text_tokens = prompt_tokens + max(max_new_tokens - 1, 0), prompt_tokens
    while True:
        until = same_factors_until(where, text_tokens, longest)
        new_tokens = min(max_new_tokens, until - text_tokens + 1)
        yield Part(new_tokens, until)
        max_new_tokens, text_tokens = max_new_tokens - new_tokens, text_tokens + new_tokens
        if max_new_tokens == 0:
            return


def stop_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the ids that end an answer, as the model's generation settings and the tokenizer name them."""
    configured = model.generation_config.eos_token_id
    named: list[int | None] = cast("list[int | None]", configured) if isinstance(configured, list) else [configured]
    return frozenset(token for token in [*named, tokenizer.eos_token_id] if token is not None)


def _step(model: Any, ids: torch.Tensor, cache: Any) -> torch.Tensor:
    # Logits of a whole chunk would take more memory than the chunk's keys and values.
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    return model(input_ids=ids, past_key_values=cache, use_cache=True, **last_only).logits[:, -1].float()
