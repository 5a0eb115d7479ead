"""What a run will need in memory, from the model's configuration alone, before anything large is loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import psutil
import torch
from kiv_reference.errors import KIVBudgetError, refuse

from .sizes.model import ModelSizes, model_sizes
from .sizes.stores import held
from .sizes.weights import saved_bits
from .units import format_bytes

if TYPE_CHECKING:
    from kiv_reference.config import KIVConfig
    from transformers import PreTrainedConfig


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
    model_config: PreTrainedConfig,
    config: KIVConfig,
    dtype: torch.dtype,
    tokens: int,
    chunk_tokens: int,
    tile_tokens: int | None = None,
) -> Estimate:
    """Estimate what `tokens` of context will need, read `chunk_tokens` at a time.

    Parameters
    ----------
    dtype : torch.dtype
        Of the weights, the keys and the values.
    tile_tokens : int, optional
        Tokens that exact attention takes at once; None is all of them.
    """
    sizes = model_sizes(model_config, dtype)
    # Where each page lies is for `check_memory` to say.
    held_bytes = held(sizes.ours, replace(config, ram_bytes=None, disk_bytes=None), dtype, tokens, chunk_tokens)
    token_bytes, kept_tokens = sizes.token_bytes(dtype), min(tokens, config.sink_tokens + config.hot_tokens)
    return Estimate(
        tokens=tokens,
        token_bytes=token_bytes,
        weights=_weight_bytes(model_config, sizes, dtype),
        kept=token_bytes * kept_tokens,
        near=held_bytes.device + held_bytes.notes + sizes.others_bytes(tokens, dtype),
        cold=held_bytes.pages_in_ram,
        work=sizes.work_bytes(dtype, min(tokens, chunk_tokens), min(tokens, tile_tokens or tokens)),
    )


def _weight_bytes(model_config: PreTrainedConfig, sizes: ModelSizes, dtype: torch.dtype) -> int:
    """Return bytes of the weights; 0 for quantised ones whose width the configuration does not tell."""
    try:
        return sizes.weights.held_bytes(dtype, saved_bits(model_config))
    except LookupError:
        return 0


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
    free, wanted = free_bytes(device), need.total - need.cold
    if torch.device(device).type == "cpu":
        wanted += cold
    elif cold > (ram := psutil.virtual_memory().available):
        raise refuse(
            KIVBudgetError,
            f"Cold pages must fit into RAM: {need.tokens:,} tokens have {format_bytes(cold)} of them there",
            f"{format_bytes(ram)} free",
            "Use a shorter text, or --impl fast with --ram-bytes.",
        )
    if wanted > free:
        raise refuse(
            KIVBudgetError,
            f"A context of {need.tokens:,} tokens needs about {format_bytes(wanted)}: "
            f"{format_bytes(wanted - need.weights - need.work)} of keys and values "
            f"({format_bytes(need.token_bytes)} a token), "
            f"{format_bytes(need.weights)} of weights, {format_bytes(need.work)} to work in",
            f"{format_bytes(free)} free on {device}",
            "Use a shorter text, a smaller --chunk-tokens, a narrower --dtype, or --impl fast with --ram-bytes.",
        )


def free_bytes(device: str) -> int:
    """Return memory that a run on `device` can still take."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
