"""One query block for the whole batch: every sequence and KV head in turn, gathered into one report (SPEC 9.6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .attend import Attended, Modifiers
from .block import HeadResult, attend_block, with_missed_bound
from .index import compute_dtype
from .partition import QueryBlock, partition
from .report import BlockReport
from .select import Retrieval

if TYPE_CHECKING:
    from .config import KIVConfig
    from .tokens import Tokens


@dataclass(frozen=True)
class BlockCall:
    """A query block, and all that its heads share."""

    tokens: Tokens
    config: KIVConfig
    block: QueryBlock
    scale: float
    softcap: float | None
    sink_logits: torch.Tensor | None  # [B, HQ, TQ]
    bound: bool

    def run(self, query: torch.Tensor, given: BlockReport | None) -> tuple[torch.Tensor, BlockReport]:
        """Answer ``query [B, HQ, TQ, D]``, by `given`'s candidates and selection if there are any (SPEC 11.2)."""
        batch, heads = self.tokens.key.tensor.shape[:2]
        computed, groups = query.to(compute_dtype(query.dtype)), query.shape[1] // heads
        grouped = computed.reshape(batch, heads, groups, *query.shape[2:])  # [B, H, G, TQ, D]
        results = [[self._head(grouped[b, h], b, h, given) for h in range(heads)] for b in range(batch)]
        return self._stack([[r.attended.output for r in row] for row in results]), self._report(results)

    def _head(self, query: torch.Tensor, sequence: int, head: int, given: BlockReport | None) -> HeadResult:
        """Answer one sequence and KV head; queries at invalid positions apart, and unreported (SPEC 2.4)."""
        valid = self.tokens.valid[sequence, self.block.start : self.block.stop]
        retrieval = None if given is None else _given(given, sequence, head)
        result = self._some(query, sequence, head, valid.nonzero()[:, 0], retrieval)
        apart = self._some(query, sequence, head, (~valid).nonzero()[:, 0], None)
        output = torch.where(valid[:, None], result.attended.output, apart.attended.output)
        return result._replace(attended=result.attended._replace(output=output))

    def _some(
        self, query: torch.Tensor, sequence: int, head: int, mine: torch.Tensor, retrieval: Retrieval | None
    ) -> HeadResult:
        """Return the queries `mine`, int64 ``[TQ']``, counted from the block's first."""
        block, groups = self.block, query.shape[0]
        view = self.tokens.view(sequence, head, partition(self.config, block.start))
        sinks = self.sink_logits
        if sinks is not None:
            sinks = sinks[sequence, head * groups : (head + 1) * groups][:, mine].to(query.dtype)
        modifiers = Modifiers(self.scale, self.softcap, sinks)
        if mine.numel() == 0:
            result = self._nothing(groups, view.value.shape[1], mine)
        else:
            asked, positions = query[:, mine], block.start + mine
            result = attend_block(asked, positions, view, modifiers, self.config, block.mode, retrieval)
            if self.bound:
                result = with_missed_bound(result, asked, positions, view, modifiers)
        return self._spread(result, mine, block.stop - block.start)

    def _nothing(self, groups: int, width: int, none: torch.Tensor) -> HeadResult:
        """Return the result of no query."""
        mass = torch.zeros(groups, 0, dtype=compute_dtype(self.tokens.key.tensor.dtype), device=none.device)
        attended = Attended(mass[:, :, None].expand(-1, -1, width), mass, mass)
        retrieval = Retrieval(none, none, streamed=self.block.mode == "exact")
        return HeadResult(attended, retrieval, 0, 0, mass if self.bound else None)

    def _spread(self, result: HeadResult, mine: torch.Tensor, queries: int) -> HeadResult:
        """Put the results of the queries `mine` in their places among all `queries`."""

        def place(part: torch.Tensor) -> torch.Tensor:
            whole = part.new_zeros(part.shape[0], queries, *part.shape[2:])
            whole[:, mine] = part
            return whole

        attended = Attended(*(place(part) for part in result.attended))
        missed = None if result.missed_bound is None else place(result.missed_bound)
        return result._replace(attended=attended, missed_bound=missed)

    def _stack(self, parts: list[list[torch.Tensor]]) -> torch.Tensor:
        """Return ``[B][H]`` of ``[G, TQ, ...]`` to ``[B, HQ, TQ, ...]``."""
        return torch.stack([torch.cat(row) for row in parts])

    def _report(self, results: list[list[HeadResult]]) -> BlockReport:
        flat = [result for row in results for result in row]
        key, value = self.tokens.key.tensor, self.tokens.value.tensor
        missed = [[_round_up(r.missed_bound) for r in row if r.missed_bound is not None] for row in results]
        return BlockReport(
            mode=self.block.mode,
            first_query=self.block.start,
            query_tokens=self.block.stop - self.block.start,
            cold_pages=partition(self.config, self.block.start).pages,
            candidate_positions=_padded([[r.retrieval.candidates for r in row] for row in results]),
            selected_positions=_padded([[r.retrieval.selected for r in row] for row in results]),
            widened=torch.tensor([[r.retrieval.widened for r in row] for row in results], device=key.device),
            streamed=torch.tensor([[r.retrieval.streamed for r in row] for row in results], device=key.device),
            exact_mass=self._stack([[r.attended.exact for r in row] for row in results]).float(),
            estimated_mass=self._stack([[r.attended.estimated for r in row] for row in results]).float(),
            missed_bound=self._stack(missed) if self.bound else None,
            key_bytes=sum(r.key_tokens for r in flat) * key.shape[3] * key.element_size(),
            value_bytes=sum(r.value_tokens for r in flat) * value.shape[3] * value.element_size(),
        )


def _round_up(bound: torch.Tensor) -> torch.Tensor:
    """Round to float32, never downwards: a bound rounded to nearest may end below what it bounds (SPEC 6.2)."""
    nearest = bound.float()
    return torch.where(nearest < bound, nearest.nextafter(nearest.new_tensor(torch.inf)), nearest)


def _padded(rows: list[list[torch.Tensor]]) -> torch.Tensor:
    """Return ``[B][H]`` of int64 ``[k]`` to ``[B, H, largest k]``, filled up with -1."""
    flat = torch.nn.utils.rnn.pad_sequence([r for row in rows for r in row], batch_first=True, padding_value=-1)
    return flat.reshape(len(rows), len(rows[0]), flat.shape[1])


def _given(report: BlockReport, sequence: int, head: int) -> Retrieval:
    """Return the retrieval that a report tells of."""
    candidates, selected = report.candidate_positions[sequence, head], report.selected_positions[sequence, head]
    streamed, widened = bool(report.streamed[sequence, head]), bool(report.widened[sequence, head])
    return Retrieval(candidates[candidates >= 0], selected[selected >= 0], streamed, widened)
