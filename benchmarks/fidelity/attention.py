"""Attention over what a rule chose, and what the choice is worth."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .scene import Scene
from .tails import Pseudo


@dataclass(frozen=True)
class Answer:
    """What a rule gives for a scene, and what it read.

    Attributes
    ----------
    output : [H, Q, G, DV]
    selected : bool [H, Q, 1 or G, T']
        Cold tokens attended exactly.
    key_tokens, value_tokens : [H, Q]
        Distinct cold tokens whose key, value was read, for each KV head and query.
    """

    output: torch.Tensor
    selected: torch.Tensor
    key_tokens: torch.Tensor
    value_tokens: torch.Tensor


def attend(scene: Scene, selected: torch.Tensor, tail: list[Pseudo], sinks: bool = True) -> torch.Tensor:
    """Softmax over sinks, the selected cold tokens, hot and the tail (SPEC 5.1): ``[H, Q, G, DV]``."""
    start, stop = scene.cold_start, scene.cold_stop
    hidden = torch.cat([scene.logits[..., :start], scene.cold_logits.masked_fill(~selected, -math.inf)], dim=3)
    if not sinks:
        hidden[..., :start] = -math.inf
    logits = torch.cat([hidden, scene.logits[..., stop:]], dim=3)
    total = torch.logsumexp(torch.cat([logits, *(part.logits for part in tail)], dim=3), dim=3, keepdim=True)
    output = torch.einsum("hqgt,htv->hqgv", torch.exp(logits - total), scene.value)
    for part in tail:
        weights = torch.exp(part.logits - total)  # [H, Q, G, M]
        if part.values.shape[1] == 1:  # the same values for every query
            output = output + torch.einsum("hqgm,hmv->hqgv", weights, part.values[:, 0, 0])
        else:
            values = part.values.expand(-1, -1, weights.shape[2], -1, -1)
            output = output + torch.einsum("hqgm,hqgmv->hqgv", weights, values)
        if part.shift is not None:
            output = output + weights.sum(dim=3, keepdim=True) * part.shift
    return output


def captured_mass(scene: Scene, selected: torch.Tensor) -> torch.Tensor:
    """Share of the cold softmax mass that was selected, ``[H, Q, G]``."""
    cold = scene.cold_logits.softmax(dim=3)
    return (cold * selected).sum(dim=3)


def output_error(scene: Scene, output: torch.Tensor) -> torch.Tensor:
    """‖o − o_full‖ / ‖o_full‖, ``[H, Q, G]``."""
    full = scene.full_output
    return (output - full).norm(dim=3) / full.norm(dim=3)
