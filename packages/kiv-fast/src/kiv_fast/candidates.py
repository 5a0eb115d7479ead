"""Candidates and selection of a block: the best tokens by their codes, and the best of those by their keys (SPEC 4).

Their keys also tell whether the codes rank well; where they do not, twice as many candidates are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from kiv_reference.select import LATE

from .attend import Queries, Tile
from .cold import Cold
from .estimate import Estimates
from .layout import Row
from .ranking import group_scores, top_set
from .scratch import chunk_tokens


@dataclass(frozen=True)
class View:
    """What a block sees of one sequence.

    Attributes
    ----------
    pages : int
        N, the cold pages of the block's partition.
    tokens : int
        Valid tokens in them.
    always : list of Tile
        Sinks and hot tokens, up to the last query.
    unseen : bool [N * P], or None
        Cold tokens that are not valid; None if all are.
    finite : bool
        Whether every value of the store is a number.
    """

    cold: Cold
    row: Row
    pages: int
    tokens: int
    always: list[Tile]
    unseen: torch.Tensor | None
    finite: bool

    def estimates(self, queries: Queries, keep: bool) -> Estimates:
        """Scores of all cold tokens, in the dtype of the queries."""
        return Estimates(self.cold, self.row, self.pages, queries.members * queries.scale, self.unseen, keep)

    def mean_values(self) -> torch.Tensor:
        """Mean values of all pages, ``[H, N, DV]``."""
        assert self.cold.index is not None, "exact mode has no tail"
        values = self.cold.records(self.cold.index.value, self.row, 0, self.pages)
        return values.transpose(0, 1).contiguous()


class Found(NamedTuple):
    """Candidates of a block, each head its own; cold tokens are counted from the first."""

    at: torch.Tensor  # int64 [H, K], ascending, -1 fills up rows
    raw: torch.Tensor  # [H, M, K], scale * q . k, minus infinity where a row is filled up
    chosen: torch.Tensor  # int64 [H, R], which of them are selected, ascending, -1 fills up rows
    widened: torch.Tensor | None = None  # bool [H], heads with twice as many candidates; None if there are none

    @property
    def selected(self) -> torch.Tensor:
        """Which of the candidates are selected, bool ``[H, K]``."""
        return marked(self.chosen, self.at.shape[1])


def marked(at: torch.Tensor, count: int) -> torch.Tensor:
    """Which of `count` are among int64 ``[H, K]``, where -1 is none: bool ``[H, count]``."""
    # A column more takes what stands for none.
    mask = torch.zeros(at.shape[0], count + 1, dtype=torch.bool, device=at.device)
    return mask.scatter_(1, at % (count + 1), True)[:, :-1]


def read(view: View, queries: Queries, at: torch.Tensor, heads: list[int] | None = None) -> torch.Tensor:
    """Scores ``[H, M, K]`` of cold tokens int64 ``[H, K]``, whose keys are read, of all or some heads (SPEC 4.5)."""
    cold, size = view.cold, view.cold.config.page_tokens
    members = queries.members if heads is None else queries.members[heads]
    raw = members.new_empty(*members.shape[:2], at.shape[1])
    known = at.clamp(min=0)
    ids, offsets = cold.page_ids(view.row, known // size), known % size
    step = chunk_tokens(cold.shape, cold.tuning)
    for first in range(0, at.shape[1], step):
        part = slice(first, first + step)
        keys = cold.arena.keys(ids[:, part], offsets[:, part], heads)
        cold.counters.key_bytes_gathered += keys.numel() * keys.element_size()
        wide = cold.scratch.convert("candidates", keys, members.dtype)
        torch.mul(members @ wide.transpose(1, 2), queries.scale, out=raw[:, :, part])
    return raw


def find(view: View, queries: Queries, estimates: Estimates) -> Found:
    """Candidates and selection (SPEC 4.4, 4.6, 4.9)."""
    config = view.cold.config
    assert config.retrieve_tokens is not None, "exact mode selects nothing"
    at = estimates.best(min(config.candidate_tokens, view.tokens))
    raw = read(view, queries, at)
    chosen = top_set(group_scores(raw, config.group), min(config.retrieve_tokens, at.shape[1]))
    found = Found(at, raw, chosen)
    if view.tokens <= config.candidate_tokens:
        return found
    heads: list[int] = _late(estimates, found).nonzero()[:, 0].tolist()
    return _widened(view, queries, estimates, found, heads) if heads else found


def _late(estimates: Estimates, found: Found) -> torch.Tensor:
    """Heads with more of their selection among the last quarter of candidates than SPEC 4.9 lets pass, bool ``[H]``."""
    count, selected = found.at.shape[1], found.chosen.shape[1]
    first = 3 * count // 4
    early = marked(top_set(estimates.scores.gather(1, found.at), first), count)
    late = (~early.gather(1, found.chosen)).sum(dim=1)
    return LATE * (late - max(0, selected - first)) > selected


def _widened(view: View, queries: Queries, estimates: Estimates, found: Found, heads: list[int]) -> Found:
    """Twice as many candidates for some heads (SPEC 4.9); no key is read twice."""
    config = view.cold.config
    wide = estimates.best(min(2 * config.candidate_tokens, view.tokens), heads)
    known = marked(found.at[heads], estimates.scores.shape[1]).gather(1, wide)
    more = wide[~known].view(len(heads), -1)
    order = torch.cat([found.at[heads], more], dim=1).argsort(dim=1)
    scores = torch.cat([found.raw[heads], read(view, queries, more, heads)], dim=2)
    scores = scores.gather(2, order[:, None].expand_as(scores))
    room = (0, more.shape[1])
    at = torch.nn.functional.pad(found.at, room, value=-1)
    raw = torch.nn.functional.pad(found.raw, room, value=-torch.inf)
    chosen = found.chosen.clone()
    at[heads], raw[heads] = wide, scores
    chosen[heads] = top_set(group_scores(scores, config.group), chosen.shape[1])
    widened = torch.zeros(at.shape[0], dtype=torch.bool, device=at.device)
    widened[heads] = True
    return Found(at, raw, chosen, widened)
