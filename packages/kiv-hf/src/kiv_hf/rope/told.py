"""The lengths of text that `rope_for_length` told, in force for the thread or task that entered it."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig


@dataclass(frozen=True, eq=False)
class Told:
    """A length in tokens, and the rotary embeddings of a model that are to rotate as in a text of it."""

    config: PreTrainedConfig
    modules: frozenset[torch.nn.Module]
    tokens: int


told: ContextVar[tuple[Told, ...]] = ContextVar("rope_for_length", default=())


def length_in_force(config: PreTrainedConfig, tokens: int) -> int:
    """Return of which length the factors are that a text model gives a text of `tokens` tokens here and now."""
    lengths = (one.tokens for one in told.get() if one.config is config or one.config == config)
    return max(tokens, *lengths, 0)


def told_to(module: torch.nn.Module) -> int:
    """Return the longest length that a rotary embedding was told, 0 if none."""
    return max((one.tokens for one in told.get() if module in one.modules), default=0)
