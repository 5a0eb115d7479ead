"""One query block of one sequence and KV head, from queries to output (SPEC 4 to 7 put together)."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .attend import Attended, Modifiers, attend_exactly, attend_tokens
from .config import KIVConfig
from .mass import missed_bound
from .report import Mode
from .select import Retrieval, choose, rank_cold
from .tail import tail
from .view import HeadView

WHOLE = (1, 2, 4)
"""`max_missed_mass` selects so many times `candidate_tokens` tokens, if need be, before it streams (SPEC 6.3)."""


class HeadResult(NamedTuple):
    """Output and account of one block, for one sequence and KV head."""

    attended: Attended
    retrieval: Retrieval
    missed_bound: torch.Tensor | None  # [G, TQ]
    key_rows: int
    value_rows: int


def retrieve(
    query: torch.Tensor, query_positions: torch.Tensor, view: HeadView, modifiers: Modifiers, config: KIVConfig
) -> Retrieval:
    """Candidates and selection (SPEC 4), or more of the best tokens until the missed bound holds (SPEC 6.3)."""
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
    bound: bool,
    given: Retrieval | None = None,
) -> HeadResult:
    """Answer the queries of a block.

    Parameters
    ----------
    query : [G, TQ, D], in the dtype of computation
    query_positions : int64 [TQ], valid positions
    mode : "exact", "retrieve" or "window"
    bound : bool
        Report the missed bound (SPEC 6.2).
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
        rows = view.cold_positions().numel()
        missed = torch.zeros(query.shape[:2], dtype=torch.float64, device=query.device) if bound else None
        return HeadResult(attended, retrieval, missed, rows, rows)

    pseudo = None
    candidates, selected = retrieval.candidates, retrieval.selected
    if mode == "retrieve" and config.tail == "mean":
        pseudo = tail(query, view, candidates, selected, modifiers)
    positions = torch.cat([view.always_attended(), selected])
    attended = attend_tokens(query, query_positions, view, positions, modifiers, pseudo)
    missed = missed_bound(query, query_positions, view, candidates, selected, modifiers) if bound else None
    return HeadResult(attended, retrieval, missed, candidates.numel(), selected.numel())
