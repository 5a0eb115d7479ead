"""One query block of one sequence and KV head, from queries to output (SPEC 4 to 7 put together)."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .attend import Attended, Modifiers, attend_exactly, attend_tokens
from .config import KIVConfig
from .mass import missed_bounds
from .report import Mode
from .select import rank_pages, select_tokens
from .tail import tail
from .view import HeadView

STREAM_FACTOR = 4
"""`max_missed_mass` takes at most this many times `candidate_pages` pages before it streams (SPEC 6.3)."""


class Retrieval(NamedTuple):
    """What a block retrieves."""

    candidates: torch.Tensor  # int64 [C], best first
    selected: torch.Tensor  # int64 [R], ascending
    streamed: bool = False


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
    """Candidates and selection (SPEC 4), enlarged until the missed bound holds (SPEC 6.3)."""
    members = query.flatten(0, 1)  # [G * TQ, D]
    ranked = rank_pages(view, members, modifiers.scale, config)
    candidates = ranked[: config.candidate_pages]
    selected = select_tokens(view, members, candidates, modifiers.scale, config)
    if config.max_missed_mass is None or ranked.numel() == 0:
        return Retrieval(candidates, selected)
    most = min(STREAM_FACTOR * config.candidate_pages, ranked.numel())
    bounds = missed_bounds(query, query_positions, view, ranked, candidates.numel(), selected, most, modifiers)
    enough = (bounds <= config.max_missed_mass).flatten(0, 1).all(dim=0).nonzero()  # [?, 1]
    if enough.numel() == 0:
        return Retrieval(candidates[:0], selected[:0], streamed=True)
    taken = int(enough[0])
    whole = [view.page_positions(page) for page in ranked[:taken].tolist()]
    return Retrieval(ranked[: max(taken, config.candidate_pages)], torch.unique(torch.cat([selected, *whole])))


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
    if mode == "retrieve" and config.tail == "mean":
        pseudo = tail(query, view, retrieval.candidates, retrieval.selected, modifiers, config)
    positions = torch.cat([view.always_attended(), retrieval.selected])
    attended = attend_tokens(query, query_positions, view, positions, modifiers, pseudo)
    missed = None
    if bound:
        pages = view.pages()
        others = pages[~torch.isin(pages, retrieval.candidates)]
        known = retrieval.candidates
        missed = missed_bounds(
            query, query_positions, view, torch.cat([known, others]), known.numel(), retrieval.selected, 0, modifiers
        )[:, :, 0]
    key_rows = int(view.count[retrieval.candidates].sum())
    return HeadResult(attended, retrieval, missed, key_rows, retrieval.selected.numel())
