"""One query block of one sequence and KV head, from queries to output (SPEC 4 to 7 put together)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from .attend import Attended, Modifiers, attend_exactly, attend_tokens
from .mass import missed_bound
from .select import Retrieval, choose, rank_cold
from .tail import tail

if TYPE_CHECKING:
    from .config import KIVConfig
    from .report import Mode
    from .view import HeadView

WHOLE = (1, 2, 4)
"""Multiples of `candidate_tokens` that `max_missed_mass` selects, if need be, before it streams (SPEC 6.3)."""


class HeadResult(NamedTuple):
    """Output and account of one block, for one sequence and KV head."""

    attended: Attended
    retrieval: Retrieval
    key_tokens: int  # whose keys had to be read
    value_tokens: int
    missed_bound: torch.Tensor | None = None  # [G, TQ]


def retrieve(
    query: torch.Tensor, query_positions: torch.Tensor, view: HeadView, modifiers: Modifiers, config: KIVConfig
) -> Retrieval:
    """Return candidates and selection (SPEC 4), or more of the best tokens until the missed bound holds (SPEC 6.3)."""
    members = query.flatten(0, 1)  # [G * TQ, D]
    ranked = rank_cold(view, members, modifiers.scale, config)
    tried = choose(view, members, ranked, modifiers.scale, config)
    if config.max_missed_mass is None:
        return tried
    wholes = (ranked[: factor * config.candidate_tokens].sort().values for factor in WHOLE)
    for retrieval in (tried, *(Retrieval(whole, whole) for whole in wholes)):
        candidates, selected = retrieval.candidates, retrieval.selected
        bound = missed_bound(query, query_positions, view, candidates, selected, modifiers)
        if bool((bound <= config.max_missed_mass).all()):
            return retrieval
    return Retrieval(ranked[:0], ranked[:0], streamed=True)


def attend_block(
    query: torch.Tensor,
    query_positions: torch.Tensor,
    view: HeadView,
    modifiers: Modifiers,
    config: KIVConfig,
    mode: Mode,
    given: Retrieval | None = None,
) -> HeadResult:
    """Answer the queries of a block.

    Parameters
    ----------
    query : [G, TQ, D], in the dtype of computation
    query_positions : int64 [TQ], valid positions
    mode : "exact", "retrieve" or "window"
    given : Retrieval, optional
        Use these candidates and this selection instead of retrieving (SPEC 11.2).
    """
    nothing = query_positions[:0]
    if mode == "retrieve":
        retrieval = given or retrieve(query, query_positions, view, modifiers, config)
    else:
        retrieval = Retrieval(nothing, nothing, streamed=mode == "exact")

    if retrieval.streamed:
        attended = attend_exactly(query, query_positions, view, modifiers)
        cold = view.cold_positions().numel()
        return HeadResult(attended, retrieval, cold, cold)

    pseudo = None
    candidates, selected = retrieval.candidates, retrieval.selected
    if mode == "retrieve" and config.tail == "mean":
        pseudo = tail(query, view, candidates, selected, modifiers)
    positions = torch.cat([view.always_attended(), selected])
    attended = attend_tokens(query, query_positions, view, positions, modifiers, pseudo)
    return HeadResult(attended, retrieval, candidates.numel(), selected.numel())


def with_missed_bound(
    result: HeadResult, query: torch.Tensor, query_positions: torch.Tensor, view: HeadView, modifiers: Modifiers
) -> HeadResult:
    """Add the missed bound to the result of a block with these queries (SPEC 6.2)."""
    retrieval = result.retrieval
    if retrieval.streamed:
        missed = torch.zeros(query.shape[:2], dtype=torch.float64, device=query.device)
    else:
        missed = missed_bound(query, query_positions, view, retrieval.candidates, retrieval.selected, modifiers)
    return result._replace(missed_bound=missed)
