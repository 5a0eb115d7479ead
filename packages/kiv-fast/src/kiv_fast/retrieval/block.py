"""One query block of one sequence: candidates, selection, values last, attention (SPEC 4 and 5 put together)."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..attention.softmax import Attended, Part, Queries, always_parts, attend_parts
from .bound import bounded, missed_bound
from .candidates import Found, View, find
from .tail import page_tail, value_shift


class Result(NamedTuple):
    """Output and account of one block and sequence."""

    attended: Attended
    candidates: torch.Tensor  # int64 [H, C], ascending, -1 fills up rows
    selected: torch.Tensor  # int64 [H, R], likewise
    widened: torch.Tensor | None  # bool [H], heads with twice as many candidates
    streamed: torch.Tensor | None  # bool [H], heads to attend exactly
    missed: torch.Tensor | None  # [H, M]
    key_rows: int
    value_rows: int


def attend_block(view: View, queries: Queries, bound: bool) -> Result:
    """Answer the queries of a block by retrieval (SPEC 4, 5, 6.3)."""
    cold, config = view.cold, view.cold.config
    always = always_parts(queries, view.always, cold.scratch)
    sinks = None if queries.sink_logits is None else queries.sink_logits.flatten(1, 2)
    if view.tokens == 0:
        attended = attend_parts(always, [], sinks, view.finite)
        none = torch.empty(queries.query.shape[0], 0, dtype=torch.int64, device=cold.shape.device)
        missed = torch.zeros_like(attended.exact, dtype=torch.float32) if bound else None
        return Result(attended, none, none, None, None, missed, 0, 0)

    estimates, streamed, missing = view.estimates(queries, keep=True), None, None
    if config.max_missed_mass is None:
        found = find(view, queries, estimates)
    else:
        found, streamed = bounded(view, queries, estimates)
    chosen, size = found.chosen, config.page_tokens
    if streamed is not None:
        missing, chosen = chosen < 0, chosen.clamp(min=0)
    at = found.at.gather(1, chosen)
    if missing is not None:
        at = at.masked_fill(missing, 0)
    page = at // size
    rows = cold.arena.values(*cold.places(view.row, at))
    cold.counters.value_bytes_gathered += rows.numel() * rows.element_size()
    values = cold.scratch.convert("selected", rows, queries.query.dtype)
    raw = found.raw.gather(2, chosen[:, None].expand(-1, found.raw.shape[1], -1))
    if missing is not None:
        raw, values = raw.masked_fill(missing[:, None], -torch.inf), values.masked_fill(missing[:, :, None], 0)
        at = at.masked_fill(missing, -1)
    own = queries.cap(raw)
    tail: list[Part] = []
    shift = None
    if config.tail == "mean":
        means = view.mean_values()
        tail = [page_tail(queries, estimates, found, means, size)]
        if at.shape[1]:  # else every head streams
            shift = value_shift(raw, own, values, page, means, missing)
    estimates.release()
    finite = view.finite and view.row.finite >= view.pages
    attended = attend_parts([*always, Part(own, values)], tail, sinks, finite, shift)
    missed = missed_bound(view, queries, found) if bound else None
    return Result(attended, found.at, at, found.widened, streamed, missed, *_rows_read(view, found, streamed))


def _rows_read(view: View, found: Found, streamed: torch.Tensor | None) -> tuple[int, int]:
    """Keys and values that a block had to read (SPEC 9.6)."""
    if streamed is None:
        return found.keys, found.chosen.numel()
    rows = torch.stack([(part >= 0).sum(dim=1) for part in (found.at, found.chosen)])
    keys, values = rows.masked_fill(streamed, view.tokens).sum(dim=1).tolist()
    return int(keys), int(values)
