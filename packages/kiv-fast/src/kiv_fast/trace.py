"""What a call did, kept as it fell out of the computation and put into a report only when asked (SPEC 9.6)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import torch
from kiv_reference.report import BlockReport

from .ops.arguments import Found
from .ops.decoding import Chosen
from .partition import Block
from .shape import Shape


@dataclass
class RowTrace:
    """One sequence of a block.

    Attributes
    ----------
    among : bool [TQ], or None
        Which queries are told of; None if all are.
    groups : int
        G.
    estimated : [H, M]
        Estimated shares of mass of these queries.
    missed : [H, M], or None
        Bounds on what they missed.
    found : Found or Chosen, or None
        Candidates and selection.
    streamed : bool [H], or None
        Heads that were attended exactly; None if none was.
    """

    among: torch.Tensor | None
    groups: int
    estimated: torch.Tensor
    missed: torch.Tensor | None = None
    found: Found | Chosen | None = None
    streamed: torch.Tensor | None = None

    @classmethod
    def empty(cls, shape: Shape, groups: int, count: int, bound: bool) -> RowTrace:
        """Return what there is to tell of `count` queries none of which is valid."""
        none = torch.zeros(shape.heads, 0, device=shape.device)
        nobody = torch.zeros(count, dtype=torch.bool, device=shape.device)
        return cls(nobody, groups, none, none if bound else None)

    def shares(self, part: torch.Tensor) -> torch.Tensor:
        """Put shares ``[H, M]`` in their places among all queries of the block, float32 ``[HQ, TQ]``."""
        part = part.float().clamp(0, 1).reshape(part.shape[0] * self.groups, part.shape[1] // self.groups)
        if self.among is None:
            return part
        whole = part.new_zeros(part.shape[0], self.among.numel())
        whole[:, self.among] = part
        return whole


@dataclass
class BlockTrace:
    """One block of a call."""

    block: Block
    rows: list[RowTrace] = field(default_factory=list[RowTrace])
    key_rows: int = 0
    value_rows: int = 0
    hits: torch.Tensor | None = None  # int32 [B, H, 2], keys and values that the device had kept

    def report(self, shape: Shape, sink_tokens: int) -> BlockReport:
        """Report this block."""
        device = shape.device
        none = torch.empty(shape.heads, 0, dtype=torch.int64, device=device)
        nowhere = torch.zeros(shape.heads, dtype=torch.bool, device=device)
        found, exact = [row.found for row in self.rows], self.block.mode == "exact"
        widened = [None if one is None else one.widened for one in found]
        key_rows = self.key_rows + sum(one.more for one in found if isinstance(one, Chosen))
        missed = [row.shares(row.missed) for row in self.rows if row.missed is not None]
        key_size, value_size = (width * shape.dtype.itemsize for width in (shape.key_width, shape.value_width))
        keys, values = (0, 0) if self.hits is None else cast("list[int]", self.hits.sum(dim=(0, 1)).tolist())
        return BlockReport(
            mode=self.block.mode,
            first_query=self.block.start,
            query_tokens=self.block.stop - self.block.start,
            cold_pages=self.block.pages,
            candidate_positions=_stack([none if one is None else one.candidates.long() for one in found], sink_tokens),
            selected_positions=_stack([none if one is None else one.positions.long() for one in found], sink_tokens),
            widened=torch.stack([nowhere if one is None else one for one in widened]),
            streamed=torch.stack([nowhere | exact if row.streamed is None else row.streamed for row in self.rows]),
            exact_mass=torch.stack([row.shares(1 - row.estimated) for row in self.rows]),
            estimated_mass=torch.stack([row.shares(row.estimated) for row in self.rows]),
            missed_bound=torch.stack(missed) if missed else None,
            key_bytes=key_rows * key_size,
            value_bytes=self.value_rows * value_size,
            kept_bytes=keys * key_size + values * value_size,
        )


def _stack(rows: list[torch.Tensor], first: int) -> torch.Tensor:
    """Shift numbers from 0 on, ``[H, K]`` of each sequence, to `first` on, ``[B, H, largest K]``; -1 fills up."""
    width = max(row.shape[1] for row in rows)
    padded = [torch.nn.functional.pad(row, (0, width - row.shape[1]), value=-1) for row in rows]
    at = torch.stack(padded)
    return torch.where(at < 0, -1, at + first)
