"""How much softmax mass may have been left out (SPEC 6.2), and how many tokens to take so that little is (6.3)."""

from __future__ import annotations

from typing import Any, cast

import torch

from ..ops.arguments import Found, Queries
from ..ops.decoding import Chosen
from .candidates import FACTORS, View, find


def missed_bound(view: View, queries: Queries, estimates: Any, found: Found) -> torch.Tensor:
    """Return the bound of SPEC 6.2, ``[H, M]`` in float32, rounded up."""
    ops = view.cold.ops
    return round_up(ops.missed(estimates, found, _error(view), ops.held(queries, view.always))[0])


def window_bound(view: View, queries: Queries) -> torch.Tensor:
    """Return the same where nothing is retrieved (SPEC 7.3)."""
    heads, members, _ = queries.members.shape
    if view.tokens == 0:
        return queries.members.new_zeros(heads, members)
    none = torch.empty(heads, 0, dtype=torch.int32, device=queries.query.device)
    found = Found(none, queries.members[:, :, :0], none, 0, 0, [])
    return missed_bound(view, queries, view.cold.ops.estimate(view.index, queries, 1), found)


def chosen_bound(view: View, queries: Queries, chosen: Chosen) -> torch.Tensor:
    """Return the same for what a decode step of all sequences chose: estimates and scores are computed once more."""
    cold, at = view.cold, chosen.candidates.long()
    none, keys = at < 0, cold.rows(view.row, values=False)
    key = keys.gather(at.clamp(min=0), None).to(queries.query.dtype)
    raw = torch.bmm(queries.scaled, key.transpose(1, 2)).masked_fill(none[:, None], -torch.inf)
    selected = torch.searchsorted(at.masked_fill(none, view.tokens), chosen.positions.long())
    found = Found(at, raw, selected, at.shape[1], 0, [], chosen.widened)
    return missed_bound(view, queries, cold.ops.estimate(view.index, queries, view.most), found)


def _error(view: View) -> torch.Tensor:
    """Return the largest distances of the pages' keys from their approximate keys, ``[N, H, D]``, on the device."""
    assert view.cold.index is not None, "exact mode bounds nothing"
    return view.cold.transfer.upload(view.index.by_page(view.cold.index.error))


def round_up(share: torch.Tensor) -> torch.Tensor:
    """Round float64 to float32, never downwards."""
    short = share.to(torch.float32)
    return torch.where(short.to(share.dtype) < share, torch.nextafter(short, torch.full_like(short, torch.inf)), short)


def bounded(view: View, queries: Queries, estimates: Any) -> tuple[Found, torch.Tensor, torch.Tensor]:
    """Take more of the best tokens until the bound holds (SPEC 6.3); also the heads that must stream, bool ``[H]``.

    The third is the bound, ``[H, M]`` in float32, rounded up.
    """
    cold, limit, size = view.cold, view.cold.config.max_missed_mass, view.cold.config.candidate_tokens
    assert limit is not None, "called without a bound to keep"
    found, held, error = find(view, estimates), cold.ops.held(queries, view.always), _error(view)
    missed, whole, least = cold.ops.missed(estimates, found, error, held)
    enough = cast("list[bool]", (missed <= limit).all(dim=1).tolist())
    if all(enough):
        return found, torch.zeros(len(enough), dtype=torch.bool, device=missed.device), round_up(missed)
    may_do = cast("list[bool]", (whole <= limit).all(dim=1).tolist())
    must_stream = cast("list[bool]", (least > limit).any(dim=1).tolist())
    wide = [False] * len(enough) if found.widened is None else cast("list[bool]", found.widened.tolist())
    keys, taken = cold.rows(view.row, values=False), list[Found | None](found.heads)
    for head, one in enumerate(found.heads):
        if enough[head]:
            continue
        taken[head], had = None, 1 + wide[head]
        one = one._replace(width=min(had * size, view.tokens))
        for factor in FACTORS[1:]:
            if must_stream[head]:
                break
            if factor <= had and not may_do[head]:
                continue  # all that it has read are not enough
            count = min(factor * size, view.tokens)
            known = one if one.width <= count else one._replace(width=0)
            one = cold.ops.take(estimates, keys, head, known, count)
            cold.counters.key_bytes_gathered += one.keys * cold.shape.key_width * cold.shape.dtype.itemsize
            missed[head] = cold.ops.missed(estimates, one, error, held, head)[0]
            if bool((missed[head] <= limit).all()):
                taken[head] = one
                break
    streamed = torch.tensor([one is None for one in taken], device=missed.device)
    widened = None if found.widened is None else found.widened & torch.tensor(enough, device=missed.device)
    return _joined(found, taken)._replace(widened=widened), streamed, round_up(missed)


def _joined(found: Found, taken: list[Found | None]) -> Found:
    """Return what was taken of each head, rows filled up; nothing of a head that streams."""
    rows = [one for one in taken if one is not None]
    width, selected = max((one.width for one in rows), default=0), max((one.chosen.shape[1] for one in rows), default=0)
    at, chosen = (found.at.new_full((len(taken), size), -1) for size in (width, selected))
    raw = found.raw.new_full((len(taken), found.raw.shape[1], width), -torch.inf)
    for head, one in enumerate(taken):
        if one is not None:
            for part, row in zip((at, raw, chosen), (one.candidates, one.scores, one.chosen), strict=True):
                part[head, ..., : row.shape[-1]] = row[0]
    return Found(at, raw, chosen, width, 0, [], ragged=True)
