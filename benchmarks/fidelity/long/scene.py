"""One KV head of a captured layer: its cold tokens, the queries that are asked, and what full attention gives them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from .capture import TEXT_TOKENS, Capture

if TYPE_CHECKING:
    from collections.abc import Iterator

SINK_TOKENS = 4
PAGE_TOKENS = 512
"""The cold region is a multiple of this for every index, so that all see the same tokens."""


@dataclass(frozen=True)
class Scene:
    """Q queries of the G heads that share a KV head, over T tokens; float32.

    Attributes
    ----------
    key, value : [T, D], [T, DV]
    query : [Q, G, D]
        Times the factor on query · key.
    positions : int64 [Q]
        T where a question follows the document.
    sampled, sampled_positions : [S, G, D], int64 [S]
        Earlier queries, as they are.
    cold_stop, hot_tokens : int
        Tokens from SINK_TOKENS to `cold_stop` are cold for every query.
    """

    key: torch.Tensor
    value: torch.Tensor
    query: torch.Tensor
    positions: torch.Tensor
    sampled: torch.Tensor
    sampled_positions: torch.Tensor
    cold_stop: int
    hot_tokens: int

    @property
    def cold(self) -> slice:
        """The cold tokens."""
        return slice(SINK_TOKENS, self.cold_stop)

    @property
    def cold_tokens(self) -> int:
        """N."""
        return self.cold_stop - SINK_TOKENS

    @cached_property
    def cold_key(self) -> torch.Tensor:
        """``[N, D]``."""
        return self.key[self.cold]

    @cached_property
    def cold_value(self) -> torch.Tensor:
        """``[N, DV]``."""
        return self.value[self.cold]

    @cached_property
    def logits(self) -> torch.Tensor:
        """``[Q, G, T]``; -inf where a token is later than the query."""
        later = torch.arange(len(self.key)) > self.positions[:, None]
        return (self.query @ self.key.T).masked_fill_(later[:, None], -math.inf)

    @property
    def cold_logits(self) -> torch.Tensor:
        """``[Q, G, N]``."""
        return self.logits[..., self.cold]

    @cached_property
    def cold_mass(self) -> torch.Tensor:
        """Softmax mass of the cold tokens, summed over the group: ``[Q, N]``."""
        total = self.logits.logsumexp(dim=2, keepdim=True)
        return (self.cold_logits - total).exp_().sum(dim=1)

    @cached_property
    def full_output(self) -> torch.Tensor:
        """Output of full attention, ``[Q, G, DV]``."""
        return self.logits.softmax(dim=2) @ self.value


def cold_tokens(tokens: int, hot_tokens: int) -> int:
    """Count the tokens that are cold for each of the last queries of a document, in whole pages."""
    return max(0, tokens - TEXT_TOKENS - hot_tokens - SINK_TOKENS) // PAGE_TOKENS * PAGE_TOKENS


def scenes(capture: Capture, layer: int, asked: list[int], text: slice, hot_tokens: int) -> Iterator[Scene]:
    """Make the scenes of a layer's KV heads: the last positions that `text` takes, then the questions `asked`."""
    held = capture.layers[layer]
    heads = held.key.shape[0]
    query = torch.cat([held.text[:, text], held.asked[:, asked]], dim=1).float() * capture.scale
    first = capture.tokens - TEXT_TOKENS
    positions = torch.cat([torch.arange(TEXT_TOKENS)[text] + first, torch.full((len(asked),), capture.tokens)])
    queries, sampled = (x.unflatten(0, (heads, -1)).transpose(1, 2) for x in (query, held.sampled.float()))
    stop = SINK_TOKENS + cold_tokens(capture.tokens, hot_tokens)
    for head in range(heads):
        key, value = held.key[head].float(), held.value[head].float()
        yield Scene(key, value, queries[head], positions, sampled[head], capture.positions, stop, hot_tokens)
