"""Candidates and selection of a block: the best tokens by their codes, and the best of those by their keys (SPEC 4).

Their keys also tell whether the codes rank well; where they do not, twice as many candidates are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..attention.softmax import Queries, Tile
from ..cold import Cold
from ..memory.scratch import chunk_tokens
from ..pages.block_table import Row
from .estimate import Estimates
from .ranking import group_scores, top_set

LATE = 16
"""More than one selected token in so many that is late doubles the candidates (SPEC 4.9)."""


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
    keys: int = 0  # how many were read; not told where heads differ by `max_missed_mass`
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


def read(view: View, queries: Queries, at: torch.Tensor, heads: torch.Tensor | None = None) -> torch.Tensor:
    """Scores ``[n, M, K]`` of cold tokens ``[n, K]``, whose keys are read, of all heads or of some (SPEC 4.5)."""
    cold = view.cold
    members = queries.members if heads is None else queries.members.index_select(0, heads)
    raw = members.new_empty(*members.shape[:2], at.shape[1])
    ids, offsets = cold.places(view.row, at.clamp(min=0), heads)
    step = chunk_tokens(cold.shape, cold.tuning)
    for first in range(0, at.shape[1], step):
        part = slice(first, first + step)
        keys = cold.arena.keys(ids[:, part], offsets[:, part])
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
    found = Found(at, raw, chosen, at.numel())
    if view.tokens <= config.candidate_tokens:
        return found
    heads = view.cold.transfer.fetch(_late(estimates, found)).nonzero()[:, 0]  # the host must know: it begins a reading
    return _widened(view, queries, estimates, found, view.cold.transfer.send(heads)) if len(heads) else found


def _late(estimates: Estimates, found: Found) -> torch.Tensor:
    """Heads with more of their selection among the last quarter of candidates than SPEC 4.9 lets pass, bool ``[H]``."""
    count, selected = found.at.shape[1], found.chosen.shape[1]
    first = 3 * count // 4
    early = marked(top_set(estimates.scores.gather(1, found.at), first), count)
    late = (~early.gather(1, found.chosen)).sum(dim=1)
    return LATE * (late - max(0, selected - first)) > selected


def _widened(view: View, queries: Queries, estimates: Estimates, found: Found, heads: torch.Tensor) -> Found:
    """Twice as many candidates for some heads, int64 ``[n]`` (SPEC 4.9); no key is read twice."""
    config = view.cold.config
    at, raw, chosen = (part.index_select(0, heads) for part in found[:3])
    scores = estimates.scores.index_select(0, heads)
    wide = top_set(scores, min(2 * config.candidate_tokens, view.tokens))
    known = marked(at, scores.shape[1]).gather(1, wide)
    # As many are new of each head: sorting finds them and, other than a mask, lets no host wait for their number.
    more = wide.gather(1, known.sort(dim=1, stable=True).indices[:, : wide.shape[1] - at.shape[1]])
    order = torch.cat([at, more], dim=1).argsort(dim=1)
    raw = torch.cat([raw, read(view, queries, more, heads)], dim=2)
    raw = raw.gather(2, order[:, None].expand_as(raw))
    chosen = top_set(group_scores(raw, config.group), chosen.shape[1])
    room = (0, more.shape[1])
    return Found(
        torch.nn.functional.pad(found.at, room, value=-1).index_copy(0, heads, wide),
        torch.nn.functional.pad(found.raw, room, value=-torch.inf).index_copy(0, heads, raw),
        found.chosen.index_copy(0, heads, chosen),
        found.keys + more.numel(),
        torch.zeros(len(found.at), dtype=torch.bool, device=heads.device).index_fill(0, heads, True),
    )
