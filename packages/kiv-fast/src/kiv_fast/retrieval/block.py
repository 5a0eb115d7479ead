"""One query block of one sequence: candidates, selection, values last, attention (SPEC 4 and 5 put together)."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch

from ..ops.arguments import Found, Queries
from .bound import bounded, missed_bound
from .candidates import View, find


class Result(NamedTuple):
    """Output and account of one block and sequence."""

    estimated: torch.Tensor  # [H, M], shares of mass
    found: Found | None  # None without a cold token
    streamed: torch.Tensor | None  # bool [H], heads to attend exactly
    missed: torch.Tensor | None  # [H, M]
    key_rows: int
    value_rows: int


def attend_block(view: View, queries: Queries, bound: bool, out: torch.Tensor) -> Result:
    """Answer the queries of a block by retrieval (SPEC 4, 5, 6.3); `out` as for `Ops.attend`.

    Of several blocks, or sequences, at once, each head's members are those of one block, and no bound is kept.
    """
    cold, config = view.cold, view.cold.config
    if view.tokens == 0:
        estimated = cold.ops.attend(queries, view.always, view.finite, None, False, out)
        missed = torch.zeros_like(estimated) if bound else None
        return Result(estimated, None, None, missed, 0, 0)
    estimates, streamed, missed = cold.ops.estimate(view.index, queries, view.most), None, None
    if config.max_missed_mass is not None:
        found, streamed, missed = bounded(view, queries, estimates)
    else:
        found = find(view, estimates)
        missed = missed_bound(view, queries, estimates, found) if bound else None
    selected = found.chosen.numel() if streamed is None else int((found.chosen >= 0).sum())
    cold.counters.value_bytes_gathered += selected * cold.shape.value_width * cold.shape.dtype.itemsize
    finite = view.finite and view.row.finite >= view.index.pages
    if streamed is None or not bool(streamed.all()):
        retrieved = estimates, found, cold.rows(view.row, values=True, blocks=view.blocks)
        estimated = cold.ops.attend(queries, view.always, finite, retrieved, config.tail == "mean", out)
    else:
        estimated = found.raw.new_zeros(found.raw.shape[:2])
    return Result(estimated, found, streamed, missed if bound else None, *_rows_read(view, found, streamed))


def _rows_read(view: View, found: Found, streamed: torch.Tensor | None) -> tuple[int, int]:
    """Return keys and values that a block had to read (SPEC 9.6)."""
    if streamed is None:
        return found.keys, found.chosen.numel()
    rows = torch.stack([(part >= 0).sum(dim=1) for part in (found.candidates, found.chosen)])
    keys, values = cast("list[int]", rows.masked_fill(streamed, view.tokens).sum(dim=1).tolist())
    return keys, values
