"""Caches filled with random keys and values, so that a context of a million tokens needs no prefill.

The numbers are normal with the mean and spread that each channel has in the real model on real text, because the size
of the keys decides how peaked attention is. Random keys have no structure along the text: a hierarchy of summaries can
prune less of them than of real ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicSlidingWindowLayer

from .subjects import PROMPT_TOKENS, Subject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHUNK_TOKENS = 4096


class Spread(NamedTuple):
    """Mean and standard deviation of a layer's keys or values, each [1, H, 1, D]."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def sample(self, tokens: int, generator: torch.Generator) -> torch.Tensor:
        """Draw random vectors on the device of `mean`, bfloat16 [1, H, tokens, D]."""
        _, heads, _, width = self.mean.shape
        noise = torch.randn(1, heads, tokens, width, generator=generator, device=self.mean.device)
        return noise.mul_(self.deviation).add_(self.mean).to(torch.bfloat16)


class LayerSpread(NamedTuple):
    """What a layer's random keys and values look like."""

    key: Spread
    value: Spread


def measure_spreads(model: PreTrainedModel, ids: torch.Tensor) -> list[LayerSpread]:
    """Measure mean and spread of keys and values of every layer over the real tokens `ids` [1, T]."""
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(input_ids=ids, past_key_values=cache, logits_to_keep=1)

    def spread(states: torch.Tensor) -> Spread:
        states = states[:, :, 1:].float()  # without the first token, whose key is of another size
        return Spread(states.mean(dim=2, keepdim=True), states.std(dim=2, keepdim=True))

    layers: list[Any] = cache.layers
    return [LayerSpread(spread(layer.keys), spread(layer.values)) for layer in layers]


def random_chunks(
    spread: LayerSpread, tokens: int, seed: int, chunk: int = CHUNK_TOKENS
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield keys and values, each [1, H, n, D], `tokens` in all; the same for the same seed and chunk."""
    generator = torch.Generator(spread.key.mean.device).manual_seed(seed)
    for start in range(0, tokens, chunk):
        count = min(chunk, tokens - start)
        yield spread.key.sample(count, generator), spread.value.sample(count, generator)


@torch.inference_mode()
def fill(
    subject: Subject,
    spreads: list[LayerSpread],
    prompt: torch.Tensor,
    tokens: int,
    seed: int,
    between: Callable[[], object] = lambda: None,
) -> None:
    """Bring an empty subject to `tokens` tokens: real ones from `prompt` first, then random ones in every layer.

    Stores are filled in turns, chunk by chunk, as by a prefill: every layer has its share of a RAM budget. `between` is
    called before each chunk, and may raise to end it.
    """
    subject.step(prompt[:, :PROMPT_TOKENS])
    missing, stores = tokens - PROMPT_TOKENS, list[Any]()
    for number, (layer, spread) in enumerate(zip(subject.cache.layers, spreads, strict=True)):
        layer_seed = 1000 * seed + number
        if isinstance(layer, DynamicSlidingWindowLayer):
            _fill_window(layer, spread, tokens, layer_seed)
        elif hasattr(layer, "store"):
            stores.append((layer.store, random_chunks(spread, missing, layer_seed)))
        else:
            _fill_plain(layer, spread, tokens, layer_seed, between)
    for chunks in zip(*(chunks for _, chunks in stores), strict=True):
        between()
        for (store, _), chunk in zip(stores, chunks, strict=True):
            store.append(*(part.to(subject.model.dtype) for part in chunk))


def _fill_window(layer: DynamicSlidingWindowLayer, spread: LayerSpread, tokens: int, seed: int) -> None:
    kept = min(tokens, layer.sliding_window - 1)
    assert layer.keys is not None, "the prompt has initialised it"
    dtype = layer.keys.dtype
    layer.keys, layer.values = (part.to(dtype) for part in next(random_chunks(spread, kept, seed, chunk=kept)))
    layer.cumulative_length = tokens


def _fill_plain(layer: Any, spread: LayerSpread, tokens: int, seed: int, between: Callable[[], object]) -> None:
    # Written into place: the concatenation that the layer itself would do needs twice the memory.
    start = layer.keys.shape[2]
    key, value = (old.new_empty(*old.shape[:2], tokens, old.shape[3]) for old in (layer.keys, layer.values))
    key[:, :, :start], value[:, :, :start] = layer.keys, layer.values
    for new_key, new_value in random_chunks(spread, tokens - start, seed):
        between()
        end = start + new_key.shape[2]
        key[:, :, start:end], value[:, :, start:end] = new_key, new_value
        start = end
    layer.keys, layer.values = key, value
