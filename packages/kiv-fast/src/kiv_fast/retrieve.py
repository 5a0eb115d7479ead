"""One query block of one sequence: candidates, selection, values last, attention (SPEC 4 and 5 put together)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from .attend import Attended, Part, Queries, Tile, always_parts, attend_parts
from .cold import Cold
from .mass import enlarge, missed_bound
from .ranking import top_set
from .rows import ColdRow
from .scratch import chunk_pages
from .select import candidates, group_terms, page_query
from .shift import value_shift
from .tail import page_tail, page_values, span_tail
from .transfer import Reply


@dataclass(frozen=True)
class View:
    """What a block sees of one sequence.

    Attributes
    ----------
    pages : int
        N, the cold pages of the block's partition.
    filled : int
        Cold pages among them that have a valid token.
    always : list of Tile
        Sinks and hot tokens, up to the last query.
    cold_valid : bool [N * P], or None
        Validity of the cold positions; None if all are valid.
    finite : bool
        Whether every value of the store is a number.
    later : list of Reply, or None
        Where to ask whether what was assumed does not hold; None: nothing is assumed.
    """

    cold: Cold
    row: ColdRow
    pages: int
    filled: int
    always: list[Tile]
    cold_valid: torch.Tensor | None
    finite: bool
    later: list[Reply] | None = None


class Retrieval(NamedTuple):
    """What a block retrieves, each head its own; -1 fills up rows."""

    candidates: torch.Tensor  # int64 [H, C], best first
    selected: torch.Tensor  # int64 [H, R], cold positions counted from the first, ascending
    streamed: torch.Tensor | None  # bool [H], heads to attend exactly


class Result(NamedTuple):
    """Output and account of one block and sequence."""

    attended: Attended
    retrieval: Retrieval
    missed: torch.Tensor | None  # [H, M]
    key_rows: int
    value_rows: int


class Candidates(NamedTuple):
    """The candidates' tokens, pages in ascending order."""

    pages: torch.Tensor  # int64 [H, C], -1 fills up rows
    raw: torch.Tensor  # [H, M, C * P], scale * q . k, minus infinity where a token is invalid


def read_candidates(view: View, queries: Queries, pages: torch.Tensor) -> Candidates:
    """Read and score the tokens of candidate pages, int64 ``[H, C]``, in any order with -1 anywhere."""
    cold, size = view.cold, view.cold.config.page_tokens
    pages = pages.sort(dim=1).values
    known = pages.clamp(min=0)
    ids, members = cold.page_ids(view.row, known), queries.members
    raw = members.new_empty(*members.shape[:2], ids.shape[1] * size)
    step = chunk_pages(cold.shape, size, cold.tuning)
    for first in range(0, ids.shape[1], step):
        keys = cold.arena.keys(ids[:, first : first + step])
        cold.counters.key_bytes_gathered += keys.numel() * keys.element_size()
        wide = cold.scratch.convert("candidates", keys, members.dtype)
        scores = raw[:, :, first * size : (first + step) * size]
        torch.mul(members @ wide.transpose(1, 2), queries.scale, out=scores)
    unseen = None
    if view.cold_valid is not None:
        unseen = ~view.cold_valid.view(-1, size)[known].flatten(1)  # [H, C * P]
    if view.filled < view.pages or cold.config.max_missed_mass is not None:
        gone = (pages < 0).repeat_interleave(size, dim=1)
        unseen = gone if unseen is None else unseen | gone
    if unseen is not None:
        raw.masked_fill_(unseen[:, None], -torch.inf)
    return Candidates(pages, raw)


def choose_tokens(view: View, tokens: Candidates, terms: torch.Tensor | None) -> torch.Tensor:
    """The selection (SPEC 4.6): int64 ``[H, R]`` indices into the candidates' tokens, ascending; -1 fills up rows.

    `terms` are those of the group rule "exp_sum" (`group_terms`), None under another rule.
    """
    config = view.cold.config
    assert config.retrieve_tokens is not None, "exact mode selects nothing"
    scores = tokens.raw.amax(dim=1) if terms is None else terms.sum(dim=1)
    if view.cold_valid is None:
        return top_set(scores, config.retrieve_tokens)
    scores.masked_fill_(tokens.raw[:, 0] == -torch.inf, -torch.inf)
    chosen = top_set(scores, config.retrieve_tokens)
    chosen = torch.where(scores.gather(1, chosen) > -torch.inf, chosen, scores.shape[1])
    chosen = chosen.sort(dim=1).values
    width = int((chosen < scores.shape[1]).sum(dim=1).max())
    return torch.where(chosen < scores.shape[1], chosen, -1)[:, :width]


def attend_block(view: View, queries: Queries, bound: bool) -> Result:
    """Answer the queries of a block by retrieval (SPEC 4, 5, 6.3)."""
    cold, config = view.cold, view.cold.config
    heads = queries.query.shape[0]
    always = always_parts(queries, view.always, cold.scratch)
    sinks = None if queries.sink_logits is None else queries.sink_logits.flatten(1, 2)
    none = torch.empty(heads, 0, dtype=torch.int64, device=cold.shape.device)
    if view.filled == 0:
        attended = attend_parts(always, [], sinks, view.finite)
        missed = torch.zeros_like(attended.exact, dtype=torch.float32) if bound else None
        return Result(attended, Retrieval(none, none, None), missed, 0, 0)

    members = page_query(queries.members, queries.scale, config.spread_weight)
    count = min(config.candidate_pages, view.filled)
    best = candidates(cold, view.row, members, view.pages, count, config.group, view.later)
    tokens = read_candidates(view, queries, best)
    terms = group_terms(tokens.raw) if config.group == "exp_sum" else None
    chosen = choose_tokens(view, tokens, terms)
    streamed = None
    if config.max_missed_mass is not None:
        best, tokens, chosen, streamed = enlarge(view, queries, members, best, tokens, chosen)
        terms = None  # of other tokens

    size = config.page_tokens
    ragged = bool((chosen < 0).any()) if view.cold_valid is not None or streamed is not None else False
    at = chosen.clamp(min=0) if ragged else chosen
    slot, offset = at // size, at % size
    page = tokens.pages.gather(1, slot)
    if streamed is not None:
        page = page.clamp_(min=0)
    rows = cold.arena.values(cold.page_ids(view.row, page), offset)
    cold.counters.value_bytes_gathered += rows.numel() * rows.element_size()
    values = cold.scratch.convert("selected", rows, queries.query.dtype)
    logits = queries.cap(tokens.raw)
    missing = chosen < 0 if ragged else None
    each = at[:, None].expand(-1, logits.shape[1], -1)
    own = logits.gather(2, each)
    if missing is not None:
        own = own.masked_fill(missing[:, None], -torch.inf)
        values = values.masked_fill(missing[:, :, None], 0)
    # A column more than there are tokens takes what stands for none.
    mask = torch.zeros(heads, logits.shape[2] + 1, dtype=torch.bool, device=logits.device)
    mask.scatter_(1, chosen if missing is None else chosen.masked_fill(missing, logits.shape[2]), True)
    mask = mask[:, :-1]

    exact = [*always, Part(own, values)]
    finite = view.finite and view.row.sizes.finite >= view.pages
    tail: list[Part] = []
    shift = None
    if config.tail == "mean":
        means = page_values(cold, view.row, tokens.pages)
        # Under a soft cap these terms are not those of the logits; and a value that is infinite shows, however little
        # it weighs.
        tail = [page_tail(logits, mask, means, size, terms if finite and queries.softcap is None else None)]
        if best.shape[1] < view.filled or streamed is not None:  # else no page is left for a span
            tail += span_tail(cold, view.row, queries, view.pages, tokens.pages, means)
        if own.shape[2]:  # else every head streams
            raw = own if queries.softcap is None else tokens.raw.gather(2, each)
            shift = value_shift(raw, own, values, slot, means, missing)
    attended = attend_parts(exact, tail, sinks, finite, shift)
    missed = None
    if bound:
        missed = missed_bound(view, queries, best, mask)
    selected = page.mul_(size).add_(offset)
    if missing is not None:
        selected.masked_fill_(missing, -1)
    retrieval = Retrieval(best, selected, streamed)
    return Result(attended, retrieval, missed, *_rows_read(view, retrieval))


def _rows_read(view: View, retrieval: Retrieval) -> tuple[int, int]:
    """Keys and values that a block had to read (SPEC 9.6): the valid tokens of candidate pages, the selected ones."""
    if view.cold_valid is None and retrieval.streamed is None:
        return retrieval.candidates.numel() * view.cold.config.page_tokens, retrieval.selected.numel()
    pages = retrieval.candidates
    counts = view.cold.counts(view.row, pages.clamp(min=0)).masked_fill_(pages < 0, 0).sum(dim=1)
    rows = (retrieval.selected >= 0).sum(dim=1)
    if retrieval.streamed is not None:
        total = int(view.row.table.counts.array[: view.pages].sum())
        counts = torch.where(retrieval.streamed, total, counts)
        rows = torch.where(retrieval.streamed, total, rows)
    read: list[int] = torch.stack([counts.sum(), rows.sum()]).tolist()
    return read[0], read[1]
