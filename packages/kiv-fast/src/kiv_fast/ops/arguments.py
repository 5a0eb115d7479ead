"""What the operations are given and give back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

LATE = 16
"""The candidates are doubled where more than one selected token in this many is late (SPEC 4.9)."""


@dataclass(frozen=True)
class Queries:
    """The queries of one block and sequence that are answered together, and what the model does to logits.

    Consecutive blocks of the same cold pages, and several sequences, may be answered together too: each block's share
    of a head is a head of its own here, and wherever the operations say H, in the order (sequence, KV head, block).

    Attributes
    ----------
    query : [H, G, TQ, D], in the dtype of computation
    start : int
        Position of the block's first query.
    among : bool [queries of the block], or None
        Which of the block's queries these are; None if all.
    scale : float
    softcap : float, optional
    sink_logits : [H, G, TQ], optional
    blocks : int
        How many blocks there are, each of TQ queries, all of them asked.
    """

    query: torch.Tensor
    start: int
    among: torch.Tensor | None
    scale: float
    softcap: float | None
    sink_logits: torch.Tensor | None
    blocks: int = 1

    @cached_property
    def positions(self) -> torch.Tensor:
        """Positions, int64 [TQ] of each block, ascending."""
        count = self.blocks * self.query.shape[2] if self.among is None else self.among.numel()
        at = torch.arange(self.start, self.start + count, device=self.query.device)
        return at if self.among is None else at[self.among]

    @cached_property
    def members(self) -> torch.Tensor:
        """All queries of a KV head, ``[H, M, D]`` with M = G * TQ."""
        return self.query.flatten(1, 2)

    @cached_property
    def scaled(self) -> torch.Tensor:
        """Members times scale, whose products with keys are scores."""
        return self.members * self.scale

    def of_heads(self, heads: slice) -> Queries:
        """Return the queries of some KV heads."""
        sinks = None if self.sink_logits is None else self.sink_logits[heads]
        return replace(self, query=self.query[heads], sink_logits=sinks)

    def part(self, begin: int, end: int) -> Queries:
        """Return the queries ``[begin, end)`` of these, without sink logits."""
        among = self.positions[begin:end] - self.start
        if self.among is None:
            return replace(self, query=self.query[:, :, begin:end], start=self.start + begin, sink_logits=None)
        mine = torch.zeros_like(self.among).index_fill_(0, among, True)
        return replace(self, query=self.query[:, :, begin:end], among=mine, sink_logits=None)

    def cap(self, logits: torch.Tensor) -> torch.Tensor:
        """Apply the soft cap (SPEC 8.1); minus infinity, which hides a token, stays."""
        if self.softcap is None:
            return logits
        return torch.tanh(logits / self.softcap).mul_(self.softcap).masked_fill_(logits == -torch.inf, -torch.inf)


class Tile(NamedTuple):
    """Consecutive tokens of one sequence, of positions from `first` on: ``[start, start + count)`` of row `row`."""

    keys: torch.Tensor  # [B, H, n, D]
    values: torch.Tensor  # [B, H, n, DV]
    row: int
    start: int
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]
    first: int
    valid: torch.Tensor | None  # bool [count]; None if all are

    @property
    def key(self) -> torch.Tensor:
        """Keys ``[H, count, D]``."""
        return self.keys[self.row, :, self.start : self.start + self.count]

    @property
    def value(self) -> torch.Tensor:
        """Values ``[H, count, DV]``."""
        return self.values[self.row, :, self.start : self.start + self.count]

    def of_heads(self, heads: slice) -> Tile:
        """Return what some KV heads have of these."""
        return self._replace(keys=self.keys[:, heads], values=self.values[:, heads])

    def part(self, begin: int, end: int) -> Tile:
        """Return the tokens ``[begin, end)`` of these."""
        valid = None if self.valid is None else self.valid[begin:end]
        return self._replace(start=self.start + begin, count=end - begin, first=self.first + begin, valid=valid)


class PagedTile(NamedTuple):
    """Consecutive tokens of whole pages in the tables ``[pages, H, P, D]`` and ``[pages, H, P, DV]``."""

    keys: torch.Tensor
    values: torch.Tensor
    ids: NDArray[np.int32]
    first: int
    valid: torch.Tensor | None


class Rows(NamedTuple):
    """Keys or values of the cold tokens of one sequence."""

    places: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
    """From cold tokens int64 ``[n, K]``, of all heads or of some int64 ``[n]``, to where keys and values are, int64."""

    read: Callable[[torch.Tensor], torch.Tensor]
    """From places ``[n, K]`` to ``[n, K, W]``."""

    table: torch.Tensor | None
    """Where all of them lie and can be read, ``[pages, H, P, W]`` by page id; None if they cannot."""

    absent: Callable[[torch.Tensor], None] | None = None
    """Puts rows at places ``[n, K]``, negative ones aside, into the table before it is read; None if all are there."""

    def bring(self, at: torch.Tensor, heads: torch.Tensor | None = None) -> None:
        """Have the rows of cold tokens ``[n, K]`` in the table; -1 is none."""
        if self.absent is not None:
            self.absent(self.places(at.clamp(min=0).long(), heads).masked_fill(at < 0, -1))

    def gather(self, at: torch.Tensor, heads: torch.Tensor | None) -> torch.Tensor:
        """Read the rows ``[n, K, W]`` of cold tokens."""
        return self.read(self.places(at, heads))


class Selection(NamedTuple):
    """The selected tokens of a block; a short row is filled up with its first one, which is `missing` from there on."""

    places: torch.Tensor  # int64 [H, R], of their keys and values
    every: torch.Tensor  # int64 [H, M, R], which of the candidates, for each member
    raw: torch.Tensor  # [H, M, R], scores; minus infinity where missing
    missing: torch.Tensor | None  # bool [H, R]; None if none is


class Found(NamedTuple):
    """Candidates and selection of a block, each head its own; cold tokens are counted from the first.

    -1 fills up rows, with a score of minus infinity.
    """

    at: torch.Tensor  # integers [H, K or more], ascending
    raw: torch.Tensor  # [H, M, K or more], scale * q . k
    chosen: torch.Tensor  # integers [H, R], which of them are selected, ascending
    width: int  # K
    keys: int  # how many were read
    late: list[int]  # heads whose selection asks for twice as many candidates (SPEC 4.9)
    widened: torch.Tensor | None = None  # bool [H], heads that have them; None if there are none
    ragged: bool = False  # whether `chosen` has rows that are filled up
    places: torch.Tensor | None = None  # int64 [H, K], of keys and values; None where they are not known

    @property
    def candidates(self) -> torch.Tensor:
        """Candidates ``[H, K]``."""
        return self.at[:, : self.width]

    @property
    def scores(self) -> torch.Tensor:
        """Scores ``[H, M, K]``."""
        return self.raw[:, :, : self.width]

    @property
    def heads(self) -> list[Found]:
        """Each head's own row."""
        rows = range(self.at.shape[0])
        return [
            self._replace(at=self.at[h : h + 1], raw=self.raw[h : h + 1], chosen=self.chosen[h : h + 1], places=None)
            for h in rows
        ]

    def told(self, heads: slice, width: int) -> Found:
        """Return what a report asks for of some heads, of which no row has more than `width` candidates: no score."""
        widened = None if self.widened is None else self.widened[heads]
        none = self.raw.new_empty(0, 0, 0)  # so that the others need not be kept
        return Found(self.at[heads, :width], none, self.chosen[heads], width, 0, [], widened)

    @property
    def selected(self) -> torch.Tensor:
        """Which of the candidates are selected, bool ``[H, K]``."""
        return marked(self.chosen, self.width, self.ragged)

    @property
    def filled(self) -> bool:
        """Whether some rows of candidates may be filled up."""
        return self.ragged or self.widened is not None

    def selection(self, rows: Rows) -> Selection:
        """Look up the selection among the candidates, both int64, and where `rows` are."""
        chosen, missing = self.chosen, None
        if self.ragged:
            missing = chosen < 0
            chosen = torch.where(missing, chosen[:, :1], chosen).clamp_(min=0)  # a head that streams has no first one
        every = chosen[:, None].expand(-1, self.raw.shape[1], -1)
        raw = self.raw.gather(2, every)
        if missing is not None:
            raw.masked_fill_(missing[:, None], -torch.inf)
        if self.places is not None:
            return Selection(self.places.gather(1, chosen), every, raw, missing)
        return Selection(rows.places(self.at.gather(1, chosen).clamp_(min=0), None), every, raw, missing)

    @property
    def positions(self) -> torch.Tensor:
        """The selected cold tokens, integers ``[H, R]``; -1 fills up rows."""
        at = self.at.gather(1, self.chosen.clamp(min=0).long())
        return at.masked_fill(self.chosen < 0, -1) if self.ragged else at


def marked(at: torch.Tensor, count: int, ragged: bool = True) -> torch.Tensor:
    """Return which of `count` are among integers ``[H, K]``, where -1 is none if `ragged`: bool ``[H, count]``."""
    if not ragged:
        return torch.zeros(at.shape[0], count, dtype=torch.bool, device=at.device).scatter_(1, at.long(), True)
    # A column more takes what stands for none.
    mask = torch.zeros(at.shape[0], count + 1, dtype=torch.bool, device=at.device)
    return mask.scatter_(1, at.long() % (count + 1), True)[:, :-1]
