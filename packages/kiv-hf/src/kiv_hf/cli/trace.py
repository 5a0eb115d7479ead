"""What a KIV cache did over the steps of an answer, summed up from its reports."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from kiv_reference.config import KIVConfig
from kiv_reference.report import AttendReport, BlockReport


@dataclass
class Trace:
    """Sums over decode steps, layers and heads.

    Parameters
    ----------
    watched : range
        Positions whose retrieval is counted; by default none.
    page_tokens, sink_tokens : int
        As in the cache's `KIVConfig`; they say which pages hold the watched positions.

    Attributes
    ----------
    retrievals : int
        Steps x layers x KV heads in which tokens were retrieved.
    page_hits : int
        Retrievals among whose candidates was a page with a watched position.
    token_hits : int
        Retrievals that selected a watched position, so that its value was attended.
    """

    watched: range = range(0)
    page_tokens: int = KIVConfig.page_tokens
    sink_tokens: int = KIVConfig.sink_tokens
    retrievals: int = 0
    page_hits: int = 0
    token_hits: int = 0
    _exact: list[float] = field(default_factory=list[float])
    _estimated: list[float] = field(default_factory=list[float])

    def add(self, reports: dict[int, AttendReport]) -> None:
        """Count one decode step: the reports of `KIVCache.reports`."""
        blocks = [block for report in reports.values() for block in report.blocks]
        self._exact += [float(block.exact_mass.mean()) for block in blocks]
        self._estimated += [float(block.estimated_mass.mean()) for block in blocks]
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
    def watched_pages(self) -> list[int]:
        """Cold pages that hold a watched position (SPEC 2.2)."""
        return sorted({(t - self.sink_tokens) // self.page_tokens for t in self.watched if t >= self.sink_tokens})

    def _count_retrievals(self, block: BlockReport) -> None:
        self.retrievals += block.streamed.numel()
        pages = torch.tensor(self.watched_pages, device=block.candidate_pages.device)
        positions = torch.tensor(list(self.watched), device=block.selected_positions.device)
        page_hit = torch.isin(block.candidate_pages, pages).any(dim=-1)
        token_hit = torch.isin(block.selected_positions, positions).any(dim=-1)
        # A streamed head attends to everything (SPEC 6.3) and so to what is watched.
        seen = block.streamed if len(self.watched) else torch.zeros_like(block.streamed)
        self.page_hits += int((page_hit | seen).sum())
        self.token_hits += int((token_hit | seen).sum())
