"""One attention layer at one context length: what every rule is asked, and the answer of full attention."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from kiv_reference.config import KIVConfig

from .capture import WINDOW_TOKENS, Capture
from .plan import HOT_TOKENS

COLD_MULTIPLE_TOKENS = 128
"""Cold regions are cut to a multiple of this, so that every page size up to it sees the same cold tokens."""


@dataclass(frozen=True)
class Setting:
    """What all rules share.

    Attributes
    ----------
    hot_tokens, sink_tokens : int
        Always attended, as in `KIVConfig`.
    retrieve_tokens : int
        R, unless a rule says otherwise.
    candidate_tokens : int
        C * P, unless a rule says otherwise.
    rope_theta : float
        Base of the rotary embedding of the global layers.
    """

    hot_tokens: int
    sink_tokens: int
    retrieve_tokens: int
    candidate_tokens: int
    rope_theta: float = 10_000.0


_DEFAULT = KIVConfig()
TOP_TOKENS = 256
"""R of the oracles and of other rules: as published. KIV's rules bring their own."""

_CANDIDATE_TOKENS = _DEFAULT.candidate_pages * _DEFAULT.page_tokens

ROPE_THETA = {"gemma": 1_000_000.0, "smollm2": 100_000.0}

SETTINGS = {
    name: Setting(hot, _DEFAULT.sink_tokens, TOP_TOKENS, _CANDIDATE_TOKENS, ROPE_THETA[name])
    for name, hot in HOT_TOKENS.items()
}
"""Short name of a model -> its setting, KIV's defaults but for the hot window: SmolLM2's context is short."""

EARLIER = {"gemma": Setting(2048, 4, 256, 4096), "smollm2": Setting(1024, 4, 256, 2048)}
"""The settings of the figures that were published before this bench was written."""


@dataclass(frozen=True)
class Scene:
    """One layer: Q queries of G heads for each of H KV heads, over T tokens.

    Attributes
    ----------
    key : float32 [H, T, D]
    value : float32 [H, T, DV]
    query : float32 [H, Q, G, D]
    positions : int64 [Q]
    scale : float
    cold_start, cold_stop : int
        The cold tokens, the same for every query; before are the sinks, after is hot.
    rope_theta : float
    """

    key: torch.Tensor
    value: torch.Tensor
    query: torch.Tensor
    positions: torch.Tensor
    scale: float
    cold_start: int
    cold_stop: int
    rope_theta: float

    @property
    def cold_tokens(self) -> int:
        """Tokens in the cold region."""
        return self.cold_stop - self.cold_start

    @cached_property
    def logits(self) -> torch.Tensor:
        """``[H, Q, G, T]``; -inf where a token is later than the query."""
        raw = self.scale * torch.einsum("hqgd,htd->hqgt", self.query, self.key)
        later = torch.arange(self.key.shape[1])[None, :] > self.positions[:, None]  # [Q, T]
        return raw.masked_fill(later[None, :, None, :], -math.inf)

    @cached_property
    def cold_logits(self) -> torch.Tensor:
        """Logits of the cold tokens, ``[H, Q, G, T']``."""
        return self.logits[..., self.cold_start : self.cold_stop]

    @cached_property
    def full_output(self) -> torch.Tensor:
        """Output of full attention, ``[H, Q, G, DV]``."""
        return torch.einsum("hqgt,htv->hqgv", self.logits.softmax(dim=3), self.value)

    def paged_keys(self, page_tokens: int) -> torch.Tensor:
        """Cold keys by page, ``[H, N, P, D]``."""
        return self.key[:, self.cold_start : self.cold_stop].unflatten(1, (-1, page_tokens))

    def paged_values(self, page_tokens: int) -> torch.Tensor:
        """Cold values by page, ``[H, N, P, DV]``."""
        return self.value[:, self.cold_start : self.cold_stop].unflatten(1, (-1, page_tokens))


def make_scene(
    key: torch.Tensor, value: torch.Tensor, query: torch.Tensor, positions: torch.Tensor, scale: float, setting: Setting
) -> Scene:
    """Build a scene from ``key [H, T, D]``, ``value [H, T, DV]``, ``query [HQ, Q, D]`` and ``positions [Q]``."""
    cold = int(positions[0]) - setting.hot_tokens - setting.sink_tokens
    cold = max(0, cold // COLD_MULTIPLE_TOKENS * COLD_MULTIPLE_TOKENS)
    grouped = query.float().unflatten(0, (key.shape[0], -1)).transpose(1, 2)  # [H, Q, G, D]
    start = setting.sink_tokens
    return Scene(key.float(), value.float(), grouped, positions, scale, start, start + cold, setting.rope_theta)


def capture_scene(capture: Capture, layer: int, length: int, setting: Setting, every: slice) -> Scene:
    """Return the scene of a captured layer, with the queries that `every` takes of the last before `length`."""
    key, value = capture.keys_values(layer)
    kept = torch.arange(WINDOW_TOKENS)[every]
    query = capture.queries(layer, length)[:, kept]
    positions = length - WINDOW_TOKENS + kept
    return make_scene(key[:, :length], value[:, :length], query, positions, capture.scale, setting)
