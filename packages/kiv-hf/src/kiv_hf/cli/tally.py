"""What a KIV cache did over the steps of an answer, summed up from its reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from kiv_reference.config import KIVConfig

if TYPE_CHECKING:
    from kiv_reference.report import AttendReport, BlockReport


class ColdTokens(NamedTuple):
    """Cold tokens of one KV head in one step, on average (SPEC 4)."""

    all: float
    candidates: float
    selected: float


@dataclass
class Tally:
    """Sums over decode steps, layers and heads.

    Parameters
    ----------
    watched : range
        Positions whose retrieval is counted; by default none.
    page_tokens : int
        As in the cache's `KIVConfig`.

    Attributes
    ----------
    retrievals : int
        Steps x layers x KV heads in which tokens were retrieved.
    widened : int
        Retrievals whose candidates were doubled, because the estimates ranked badly (SPEC 4.9).
    candidate_hits : int
        Retrievals among whose candidates was a watched position, so that its key was read.
    selected_hits : int
        Retrievals that selected a watched position, so that its value was attended.
    cold_bytes, kept_bytes : int
        Bytes of cold keys and values that steps read, and those of them that the device had kept.
    steps : int
    """

    watched: range = range(0)
    page_tokens: int = KIVConfig.page_tokens
    retrievals: int = 0
    widened: int = 0
    candidate_hits: int = 0
    selected_hits: int = 0
    cold_bytes: int = 0
    kept_bytes: int = 0
    steps: int = 0
    _exact: list[float] = field(default_factory=list[float])
    _estimated: list[float] = field(default_factory=list[float])
    _cold: list[ColdTokens] = field(default_factory=list[ColdTokens])

    def add(self, reports: dict[int, AttendReport]) -> None:
        """Count one decode step: the reports of `KIVCache.reports`."""
        blocks = [block for report in reports.values() for block in report.blocks]
        self.steps += 1
        self.cold_bytes += sum(block.key_bytes + block.value_bytes for block in blocks)
        self.kept_bytes += sum(block.kept_bytes for block in blocks)
        self._exact += [float(block.exact_mass.mean()) for block in blocks]
        self._estimated += [float(block.estimated_mass.mean()) for block in blocks]
        self._cold += [self._cold_tokens(block) for block in blocks]
        for block in blocks:
            if block.mode == "retrieve":
                self._count_retrievals(block)

    @property
    def exact_mass(self) -> float | None:
        """Mean share of attention mass held exactly (SPEC 6.1); None before the first step."""
        return sum(self._exact) / len(self._exact) if self._exact else None

    @property
    def estimated_mass(self) -> float | None:
        """Mean share of attention mass that the tail estimated (SPEC 6.1); None before the first step."""
        return sum(self._estimated) / len(self._estimated) if self._estimated else None

    @property
    def cold_tokens(self) -> ColdTokens | None:
        """Mean over steps, layers and heads; where a block is exact, all are selected. None before the first step."""
        if not self._cold:
            return None
        return ColdTokens(*(sum(numbers) / len(self._cold) for numbers in zip(*self._cold, strict=True)))

    def _cold_tokens(self, block: BlockReport) -> ColdTokens:
        cold = block.cold_pages * self.page_tokens
        chosen = ((rows >= 0).sum(dim=-1) for rows in (block.candidate_positions, block.selected_positions))
        return ColdTokens(cold, *(float(torch.where(block.streamed, cold, n).float().mean()) for n in chosen))

    def _count_retrievals(self, block: BlockReport) -> None:
        self.retrievals += block.streamed.numel()
        self.widened += int(block.widened.sum())
        self.candidate_hits += self._hits(block, block.candidate_positions)
        self.selected_hits += self._hits(block, block.selected_positions)

    def _hits(self, block: BlockReport, positions: torch.Tensor) -> int:
        """Return the pairs of sequence and KV head that hold a watched one among ``positions [B, H, k]``."""
        watched = torch.tensor(list(self.watched), dtype=positions.dtype, device=positions.device)
        # A streamed head attends to everything (SPEC 6.3) and so to what is watched.
        seen = block.streamed if len(self.watched) else torch.zeros_like(block.streamed)
        return int((torch.isin(positions, watched).any(dim=-1) | seen).sum())
