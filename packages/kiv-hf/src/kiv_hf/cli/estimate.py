"""What a run will need in memory, from the model's configuration alone, before anything large is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import psutil
import torch
from kiv_reference.errors import KIVBudgetError, refuse
from transformers import AutoModelForCausalLM, PreTrainedConfig

from .. import KIVCache
from .units import format_bytes

if TYPE_CHECKING:
    from kiv_reference.config import KIVConfig

COMPUTE_BYTES = 4
"""Scores are computed in float32 (SPEC 1.2)."""

PAGE_VECTORS, CHANNEL_BYTES = 3, 2 + COMPUTE_BYTES
"""Of a page: base, largest error and mean value; of a coded channel: which, and its step (SPEC 3, 4.2, 6.2)."""

CHANNELS_TOGETHER, TOKENS_TOGETHER = 8, 16
"""Codes of four bits (SPEC 3.3) are filled up to multiples of this many channels and tokens of a page."""

SAMPLE_TOKENS = 64
"""Positions among which one has its query kept (SPEC 3.2)."""

TILE_TOKENS = 256
"""Queries whose scores over the whole text exist at once while a prompt is read."""


@dataclass(frozen=True)
class Estimate:
    """Bytes of a run.

    Attributes
    ----------
    tokens : int
        Prompt and answer.
    token_bytes : int
        Keys and values of one token in all layers of full attention.
    weights : int
        The model.
    kept : int
        Keys and values of sinks and hot tokens in layers of full attention.
    near, cold : int
        Keys and values of sinks, hot tokens and sliding layers, the index and what it is made by; keys and values of
        pages.
    work : int
        What a chunk of the prompt needs while it is computed.
    """

    tokens: int
    token_bytes: int
    weights: int
    kept: int
    near: int
    cold: int
    work: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.near + self.cold + self.work


def estimate(
    model_config: PreTrainedConfig, config: KIVConfig, dtype: torch.dtype, tokens: int, chunk_tokens: int
) -> Estimate:
    """Estimate what `tokens` of context will need, read `chunk_tokens` at a time.

    Parameters
    ----------
    dtype : torch.dtype
        Of the weights, the keys and the values.
    """
    text: Any = model_config.get_text_config(decoder=True)
    heads: int = text.num_attention_heads
    kv_heads: int = getattr(text, "num_key_value_heads", None) or heads
    width: int = getattr(text, "head_dim", None) or text.hidden_size // heads
    layers: int = text.num_hidden_layers
    full_layers = len(KIVCache(model_config).kiv_layers())

    row_bytes = 2 * kv_heads * width * dtype.itemsize
    pages = config.cold_pages(tokens)
    cold_tokens = pages * config.page_tokens
    window = min(tokens, getattr(text, "sliding_window", None) or tokens)
    near = row_bytes * (full_layers * (tokens - cold_tokens) + (layers - full_layers) * window)
    near += full_layers * kv_heads * _index_bytes(config, width, tokens)

    chunk = min(tokens, chunk_tokens)
    scores = 3 * COMPUTE_BYTES * (heads // kv_heads) * min(chunk, TILE_TOKENS) * tokens
    wide = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    activations = COMPUTE_BYTES * chunk * (8 * text.hidden_size + 3 * wide)
    one_layer = row_bytes * tokens + 2 * COMPUTE_BYTES * width * tokens
    return Estimate(
        tokens=tokens,
        token_bytes=row_bytes * full_layers,
        weights=_weight_bytes(model_config, dtype),
        kept=row_bytes * full_layers * min(tokens, config.sink_tokens + config.hot_tokens),
        near=near,
        cold=row_bytes * full_layers * cold_tokens,
        work=scores + activations + one_layer,
    )


def _index_bytes(config: KIVConfig, width: int, tokens: int) -> int:
    """Return bytes of the index and the sampled queries of a KV head of `tokens` tokens (SPEC 3)."""
    if config.exact:
        return 0
    coded = CHANNELS_TOGETHER * math.ceil(min(config.index_channels, width) / CHANNELS_TOGETHER)
    codes = coded // 2 * TOKENS_TOGETHER * math.ceil(config.page_tokens / TOKENS_TOGETHER)
    page = codes + coded * CHANNEL_BYTES + PAGE_VECTORS * width * COMPUTE_BYTES
    return config.cold_pages(tokens) * page + tokens // SAMPLE_TOKENS * width * COMPUTE_BYTES


def check_memory(need: Estimate, config: KIVConfig, device: str, spills: bool) -> None:
    """Refuse a run that does not fit, before work starts.

    Parameters
    ----------
    spills : bool
        The implementation moves cold pages beyond ``ram_bytes`` to disk.

    Raises
    ------
    KIVBudgetError
        Memory, or ``ram_bytes``, is too small; the message has the sizes in words.
    """
    cold = need.cold
    if config.ram_bytes is not None and cold > config.ram_bytes:
        if not spills:
            raise refuse(
                KIVBudgetError,
                f"Cold pages must fit into --ram-bytes {format_bytes(config.ram_bytes)}, for this implementation "
                "has no disk tier",
                f"{format_bytes(cold)} of cold pages for {need.tokens:,} tokens",
                "Raise --ram-bytes, use a shorter text, or --impl fast.",
            )
        cold = config.ram_bytes
    free = free_bytes(device)
    wanted = need.total - need.cold + cold
    if wanted > free:
        raise refuse(
            KIVBudgetError,
            f"A context of {need.tokens:,} tokens needs about {format_bytes(wanted)}: "
            f"{format_bytes(need.near + cold)} of keys and values ({format_bytes(need.token_bytes)} a token), "
            f"{format_bytes(need.weights)} of weights, {format_bytes(need.work)} to work in",
            f"{format_bytes(free)} free on {device}",
            "Use a shorter text, a smaller --chunk-tokens, a narrower --dtype, or --impl fast with --ram-bytes.",
        )


def free_bytes(device: str) -> int:
    """Return memory that a run on `device` can still take."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def _weight_bytes(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Return bytes of the weights in `dtype`; 0 for quantised ones, whose size the configuration does not tell."""
    if getattr(config, "quantization_config", None) is not None:
        return 0
    with torch.device("meta"):
        model = cast("torch.nn.Module", AutoModelForCausalLM.from_config(config))
    return sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
