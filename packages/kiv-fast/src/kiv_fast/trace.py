"""What a call did, kept as it fell out of the computation and put into a report only when asked (SPEC 9.6)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from kiv_reference.report import AttendReport, BlockReport

from .partition import Block
from .shape import Shape


@dataclass
class RowTrace:
    """One sequence of a block; None stands for nothing retrieved."""

    candidates: torch.Tensor | None  # int64 [H, C], cold positions counted from the first
    selected: torch.Tensor | None  # int64 [H, R], likewise
    widened: torch.Tensor | None  # bool [H]; None if none is
    streamed: torch.Tensor | None  # bool [H], likewise
    exact: torch.Tensor  # [H, G, TQ]
    estimated: torch.Tensor
    missed: torch.Tensor | None


@dataclass
class BlockTrace:
    """One block of a call."""

    block: Block
    rows: list[RowTrace] = field(default_factory=list[RowTrace])
    key_rows: int = 0
    value_rows: int = 0

    def report(self, shape: Shape, sink_tokens: int) -> BlockReport:
        """The report of this block."""
        device = shape.device
        none = torch.empty(shape.heads, 0, dtype=torch.int64, device=device)
        exact = self.block.mode == "exact"
        nowhere = torch.zeros(shape.heads, dtype=torch.bool, device=device)
        candidates = [none if row.candidates is None else row.candidates for row in self.rows]
        selected = [none if row.selected is None else row.selected for row in self.rows]
        missed = [row.missed.flatten(0, 1).float() for row in self.rows if row.missed is not None]
        return BlockReport(
            mode=self.block.mode,
            first_query=self.block.start,
            query_tokens=self.block.stop - self.block.start,
            cold_pages=self.block.pages,
            candidate_positions=_stack(candidates, sink_tokens),
            selected_positions=_stack(selected, sink_tokens),
            widened=torch.stack([nowhere if row.widened is None else row.widened for row in self.rows]),
            streamed=torch.stack([nowhere | exact if row.streamed is None else row.streamed for row in self.rows]),
            exact_mass=torch.stack([row.exact.flatten(0, 1).float() for row in self.rows]),
            estimated_mass=torch.stack([row.estimated.flatten(0, 1).float() for row in self.rows]),
            missed_bound=torch.stack(missed) if missed else None,
            key_bytes=self.key_rows * shape.key_width * shape.dtype.itemsize,
            value_bytes=self.value_rows * shape.value_width * shape.dtype.itemsize,
        )


def report(traces: list[BlockTrace], shape: Shape, sink_tokens: int) -> AttendReport:
    """The report of a call."""
    return AttendReport(tuple(trace.report(shape, sink_tokens) for trace in traces))


def _stack(rows: list[torch.Tensor], first: int) -> torch.Tensor:
    """Numbers from 0 on, ``[H, K]`` of each sequence, as those from `first` on, ``[B, H, largest K]``; -1 fills up."""
    width = max(row.shape[1] for row in rows)
    padded = [torch.nn.functional.pad(row, (0, width - row.shape[1]), value=-1) for row in rows]
    at = torch.stack(padded)
    return torch.where(at < 0, -1, at + first)
