"""Faults of a report, which says something else than was done (SPEC 6 and 9.6)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from kiv_reference import call

from .patching import mutant

if TYPE_CHECKING:
    from collections.abc import Callable

    from kiv_reference.call import BlockCall
    from kiv_reference.report import BlockReport


def _reports(name: str, change: Callable[[BlockReport, BlockCall], dict[str, Any]], look: str = "") -> None:
    """Register a mutant whose block report says something else than was done."""

    def lie(original: Any) -> Any:
        def changed(self: BlockCall, results: Any) -> BlockReport:
            report = original(self, results)
            return dataclasses.replace(report, **change(report, self))

        return changed

    mutant(name, (call.BlockCall, "_report"), look=look)(lie)


_reports(
    "report: exact and estimated mass swapped",
    lambda r, _: {"exact_mass": r.estimated_mass, "estimated_mass": r.exact_mass},
)
_reports(
    "report: mass as if nothing were missed",
    lambda r, _: {"exact_mass": r.exact_mass + r.estimated_mass, "estimated_mass": 0 * r.estimated_mass},
)
_reports(
    "report: mass at padded queries",
    lambda r, _: {"exact_mass": torch.where(r.exact_mass + r.estimated_mass == 0, 1.0, r.exact_mass)},
)
_reports(
    "report: bound rounded down",
    lambda r, _: {"missed_bound": None if r.missed_bound is None else r.missed_bound * (1 - 2.0**-22)},
)
_reports(
    "report: bound always given",
    lambda r, _: {"missed_bound": r.exact_mass * 0 if r.missed_bound is None else r.missed_bound},
    look="6.2",
)
_reports("report: candidates in descending order", lambda r, _: {"candidate_positions": r.candidate_positions.flip(2)})
_reports("report: selection in descending order", lambda r, _: {"selected_positions": r.selected_positions.flip(2)})
_reports(
    "report: rows filled up by their last entry", lambda r, _: {"selected_positions": _filled(r.selected_positions)}
)
_reports("report: value bytes of all candidates", lambda r, _: {"value_bytes": max(r.key_bytes, r.value_bytes)})
_reports("report: key bytes of one head", lambda r, _: {"key_bytes": r.key_bytes // r.streamed.numel()})
_reports("report: cold pages after the call", lambda r, c: {"cold_pages": c.config.cold_pages(c.block.stop)})
_reports("report: first query counted within the call", lambda r, _: {"first_query": 0})
_reports("report: nothing streamed", lambda r, _: {"streamed": torch.zeros_like(r.streamed)})


def _filled(positions: torch.Tensor) -> torch.Tensor:
    """Leave no -1 but in rows that hold nothing else."""
    if positions.shape[2] == 0:
        return positions
    return torch.where(positions < 0, positions.amax(dim=2, keepdim=True).expand_as(positions), positions)
