"""How much softmax mass may have been left out (SPEC 6.2), and how many tokens to take so that little is (6.3).

Computed in float64: a certificate, off the path of a plain decode.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ..ops.arguments import Found, Queries, marked
from ..ops.estimates import Chunk, Estimates
from ..ops.softmax import raw_scores, tile_part
from .candidates import FACTORS, View, find

WIDE = torch.float64

EPS = torch.finfo(WIDE).eps


def missed_bound(view: View, queries: Queries, found: Found | None) -> torch.Tensor:
    """The bound of SPEC 6.2, ``[H, M]`` in float32, rounded up; without candidates if `found` is None."""
    return _round_up(_bound(view, queries, found))


def _bound(view: View, queries: Queries, found: Found | None) -> torch.Tensor:
    """The same in float64: what is missed is rounded up, and what is held down."""
    if view.tokens == 0:
        return queries.members.new_zeros(queries.members.shape[:2], dtype=WIDE)
    sinks = None if queries.sink_logits is None else queries.sink_logits.to(WIDE)
    queries = replace(queries, query=queries.query.to(WIDE), sink_logits=sinks)
    heads, size = queries.query.shape[0], view.index.page_tokens
    at = torch.empty(heads, 0, dtype=torch.int64, device=view.cold.shape.device)
    held, missed = [tile_part(queries, tile).logits for tile in view.always], list[torch.Tensor]()
    if sinks is not None:
        held.append(sinks.flatten(1, 2)[:, :, None])
    if found is not None:
        at = found.candidates
        key = view.cold.rows(view.row, values=False).gather(at.long().clamp(min=0), None).to(WIDE)
        logits = queries.cap(raw_scores(queries, key).masked_fill_((at < 0)[:, None], -torch.inf))
        held.append(logits.masked_fill(~found.selected[:, None], -torch.inf))
        missed.append(logits.masked_fill(found.selected[:, None], -torch.inf))
    known, tuning = marked(at, view.index.tokens), view.cold.tuning
    estimates = Estimates(view.index, queries, tuning.chunk_bytes, 0, whole=False)
    farthest = [tile.key.abs().amax(dim=1).to(WIDE) for tile in view.always]
    for chunk in estimates.chunks:
        radius = _radius(view, chunk)
        farthest.append(estimates.farthest(chunk, radius))
        upper = estimates.of(chunk) + estimates.error(chunk, radius).repeat_interleave(size, dim=2)
        upper = queries.cap(upper).masked_fill_(known[:, None, chunk.start : chunk.stop], -torch.inf)
        missed.append(torch.logsumexp(upper, dim=2, keepdim=True))
    # What float64 may lose in scale * q . k, of any key.
    most = torch.stack(farthest).amax(dim=0)  # [H, D]
    lost = (queries.members.abs() @ most[:, :, None])[:, :, 0].mul_((most.shape[1] + 8) * EPS * queries.scale)
    out = torch.logsumexp(torch.cat(missed, dim=2), dim=2) + lost
    total = torch.logaddexp(torch.logsumexp(torch.cat(held, dim=2), dim=2) - lost, out)
    # And what soft caps, logarithms and sums lose.
    tokens = view.index.tokens + sum(tile.count for tile in view.always)
    more = 4 * EPS * (out.abs() + total.abs() + (queries.softcap or 0.0) + tokens)
    return torch.where(out == -torch.inf, 0.0, torch.exp(out - total + more).clamp_(max=1.0))


def _radius(view: View, chunk: Chunk) -> torch.Tensor:
    """The largest distances of a chunk's keys from their approximate keys, ``[n, H, D]``, on the device."""
    assert view.cold.index is not None, "exact mode bounds nothing"
    return view.cold.transfer.upload(view.index.records(view.cold.index.error, chunk.first, chunk.last))


def _round_up(share: torch.Tensor) -> torch.Tensor:
    """To float32, never downwards."""
    short = share.to(torch.float32)
    return torch.where(short.to(WIDE) < share, torch.nextafter(short, torch.full_like(short, torch.inf)), short)


def bounded(view: View, queries: Queries, estimates: Any) -> tuple[Found, torch.Tensor]:
    """Select more of the best tokens until the bound holds; and the heads that must stream, bool ``[H]`` (SPEC 6.3)."""
    cold, heads = view.cold, queries.query.shape[0]
    config = cold.config
    assert config.max_missed_mass is not None, "called without a bound to keep"
    tried: list[Found] = []
    taken = [len(FACTORS)] * heads
    for level, factor in enumerate(FACTORS):
        if factor == 0:
            found = find(view, estimates)
        else:
            most = min(factor * config.candidate_tokens, view.tokens)
            found = cold.ops.select(estimates, cold.rows(view.row, values=False), most, most)
            cold.counters.key_bytes_gathered += found.keys * cold.shape.key_width * cold.shape.dtype.itemsize
        found = found._replace(at=found.candidates.long(), raw=found.scores.clone(), chosen=found.chosen.long())
        tried.append(found)
        enough: list[bool] = (_bound(view, queries, found) <= config.max_missed_mass).all(dim=1).tolist()
        taken = [min(have, level) if good else have for have, good in zip(taken, enough, strict=True)]
        if max(taken) < len(FACTORS):
            break
    levels = torch.tensor(taken, device=cold.shape.device)
    found = _assembled(queries, tried, taken)
    if tried[0].widened is not None:
        found = found._replace(widened=tried[0].widened & (levels == 0))
    return found, levels == len(FACTORS)


def _assembled(queries: Queries, tried: list[Found], taken: list[int]) -> Found:
    """Of each head what was found at its level, filled up; nothing of a head that streams."""
    none = torch.empty(0, dtype=torch.int64, device=queries.query.device)
    heads = [tried[level] if level < len(tried) else None for level in taken]
    at = [none if found is None else found.at[head] for head, found in enumerate(heads)]
    raw = [queries.members[head, :, :0].T if found is None else found.raw[head].T for head, found in enumerate(heads)]
    chosen = [none if found is None else found.chosen[head] for head, found in enumerate(heads)]
    pad = torch.nn.utils.rnn.pad_sequence
    raw = pad(raw, batch_first=True, padding_value=-torch.inf).transpose(1, 2).contiguous()
    at = pad(at, batch_first=True, padding_value=-1)
    chosen = pad(chosen, batch_first=True, padding_value=-1)
    return Found(at, raw, chosen, at.shape[1], 0, [], None, True)
