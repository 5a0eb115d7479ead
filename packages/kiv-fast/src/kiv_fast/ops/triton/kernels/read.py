"""Keys of the candidates, their scores, and the selection among them (SPEC 4.5 to 4.9); what 5.4 weighs it by."""

from __future__ import annotations

import triton
import triton.language as tl

from .kept import note, where_kept
from .numbers import cold_pages, ended_last, is_best, nth_best, number, order, product

LATE = tl.constexpr(16)
"""The candidates are doubled where more than one selected token in this many is late (SPEC 4.9)."""


@triton.jit
def _scores(
    q_ptr, key_ptr, key_table, key_kept, key_aside_ptr, key_slot_ptr, key_sets, hit_ptr, id_ptr, raw_ptr, estimate_ptr,
    token, at, there, scale, head, width, room, H: tl.constexpr, G: tl.constexpr, GP: tl.constexpr,
    D: tl.constexpr, P: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr, WIDE: tl.constexpr,
):
    """Score some tokens' keys, which take the place of their estimates; keys that are not kept are copied aside."""
    page = tl.load(id_ptr + head // H * room + token // P, mask=there, other=0)
    name = page * P + token % P
    far = key_ptr + ((page.to(tl.int64) * H + head % H) * P + token % P) * D
    row, slot = where_kept(key_table, key_kept, hit_ptr, far, name, there, head, key_sets, D, 0)
    aside = head.to(tl.int64) * width + at
    note(key_table, key_slot_ptr, aside, slot, name, there, head, key_sets)
    member = tl.arange(0, 2 * GP)  # products want 16 rows
    score = tl.zeros((2 * GP, BK), tl.float32)
    for start in range(0, D, BD):
        d = start + tl.arange(0, BD)
        q = tl.load(q_ptr + (head * G + member[:, None]) * D + d[None], mask=(member < G)[:, None] & (d < D)[None],
            other=0.0)
        key = tl.load(row[None] + d[:, None], mask=there[None] & (d < D)[:, None], other=0.0)
        if key_table is not None:
            mask = (there & (slot < 0))[None] & (d < D)[:, None]
            tl.store(key_aside_ptr + aside[None] * D + d[:, None], key, mask=mask)
        score += product(q, key, WIDE)
    score *= scale
    mask = (member < G)[:, None] & there[None]
    place = head * G + member
    tl.store(raw_ptr + place[:, None] * width + at[None], score, mask=mask)
    tl.store(estimate_ptr + place.to(tl.int64)[:, None] * (room * P) + token[None], score, mask=mask)


@triton.jit
def _group(raw_ptr, group_ptr, best_ptr, count, width, G: tl.constexpr, MAX: tl.constexpr, TILE: tl.constexpr):
    """Turn the scores of a head's candidates into group scores, as `order` has them."""
    if not MAX:
        for g in range(G):
            most = tl.full((), -2147483648, tl.int32)
            for start in range(0, count, TILE):
                at = start + tl.arange(0, TILE)
                score = tl.load(raw_ptr + g * width + at, mask=at < count, other=float("-inf"), cache_modifier=".cg")
                most = tl.maximum(most, tl.max(order(score), 0))
            tl.store(best_ptr + g, most)
        tl.debug_barrier()
    for start in range(0, count, TILE):
        at = start + tl.arange(0, TILE)
        group = tl.zeros((TILE,), tl.float32)
        if MAX:
            group += float("-inf")
        for g in range(G):
            score = tl.load(raw_ptr + g * width + at, mask=at < count, other=float("-inf"), cache_modifier=".cg")
            if MAX:
                group = tl.maximum(group, score)
            else:
                group += tl.exp(score - number(tl.load(best_ptr + g)))
        tl.store(group_ptr + at, order(group), mask=at < count)
    tl.debug_barrier()


@triton.jit
def _select(key_ptr, edge_ptr, at_ptr, group_ptr, chosen_ptr, count, want, TILE: tl.constexpr):
    """Note which candidates are selected; how many of them are early (SPEC 4.9)."""
    least, last = nth_best(group_ptr, at_ptr, True, count, tl.full((1,), want, tl.int32), 1, TILE)
    least, last = tl.max(least, 0), tl.max(last, 0)
    base = tl.zeros((), tl.int32)
    early = tl.zeros((), tl.int32)
    for start in range(0, count, TILE):
        at = start + tl.arange(0, TILE)
        there = at < count
        token = tl.load(at_ptr + at, mask=there, other=0, cache_modifier=".cg")
        mine = there & is_best(tl.load(group_ptr + at, mask=there, other=-2147483648), token, least, last)
        tl.store(chosen_ptr + base + tl.cumsum(mine.to(tl.int32), 0) - 1, at, mask=mine)
        base += tl.sum(mine.to(tl.int32), 0)
        estimate = tl.load(key_ptr + token, mask=mine, other=-2147483648)
        early += tl.sum((mine & is_best(estimate, token, tl.load(edge_ptr), tl.load(edge_ptr + 1))).to(tl.int32), 0)
    tl.debug_barrier()
    return early


@triton.jit
def _sizes(raw_ptr, best_ptr, chosen, there, width, G: tl.constexpr):
    """Return ln S of SPEC 5.4 of some selected tokens, 0 for others; members may be so far apart that e^score is 0."""
    most = tl.full(chosen.shape, float("-inf"), tl.float32)
    for g in range(G):
        score = tl.load(raw_ptr + g * width + chosen, mask=there, other=0.0, cache_modifier=".cg")
        most = tl.maximum(most, score - number(tl.load(best_ptr + g)))
    total = tl.zeros(chosen.shape, tl.float32)
    for g in range(G):
        score = tl.load(raw_ptr + g * width + chosen, mask=there, other=0.0, cache_modifier=".cg")
        total += tl.exp(score - number(tl.load(best_ptr + g)) - most)
    return tl.where(there, most + tl.log(total), 0.0)


@triton.jit
def _settle(
    raw_ptr, estimate_ptr, at_ptr, chosen_ptr, fade_ptr, best_ptr, want, width, stride, G: tl.constexpr,
    TILE: tl.constexpr,
):
    """Take the selection out of the estimates, and find the logarithms of what multiplies its weights (SPEC 5.4)."""
    for g in range(G):
        most = tl.full((), -2147483648, tl.int32)
        for start in range(0, want, TILE):
            item = start + tl.arange(0, TILE)
            chosen = tl.load(chosen_ptr + item, mask=item < want, other=0)
            score = tl.load(raw_ptr + g * width + chosen, mask=item < want, other=float("-inf"), cache_modifier=".cg")
            most = tl.maximum(most, tl.max(order(score), 0))
            token = tl.load(at_ptr + chosen, mask=item < want, other=0, cache_modifier=".cg")
            tl.store(estimate_ptr + g * stride + token, float("-inf"), mask=item < want)
        tl.store(best_ptr + g, most)
    tl.debug_barrier()
    middle = tl.zeros((), tl.float32)
    for start in range(0, want, TILE):
        item = start + tl.arange(0, TILE)
        chosen = tl.load(chosen_ptr + item, mask=item < want, other=0)
        middle += tl.sum(_sizes(raw_ptr, best_ptr, chosen, item < want, width, G), 0)
    middle = middle / want
    for start in range(0, want, TILE):
        item = start + tl.arange(0, TILE)
        chosen = tl.load(chosen_ptr + item, mask=item < want, other=0)
        power = 4.0 * (_sizes(raw_ptr, best_ptr, chosen, item < want, width, G) - middle)
        # ln(1 + e^power), which may be too large for e^power.
        fade = -tl.maximum(power, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(power)))
        tl.store(fade_ptr + item, fade, mask=item < want)


@triton.jit(do_not_specialize=["room", "key_sets"])
def read(
    q_ptr, key_ptr, key_table, key_kept, key_aside_ptr, key_slot_ptr, key_sets, hit_ptr, id_ptr, counts_ptr, order_ptr,
    edge_ptr, offset_ptr, estimate_ptr, at_ptr, raw_ptr, group_ptr, best_ptr, chosen_ptr, fade_ptr, wide_ptr, done_ptr,
    scale, first, candidates, want, width, room, H: tl.constexpr, G: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, P:
    tl.constexpr, MAX: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
    TILE: tl.constexpr, WIDER: tl.constexpr, WIDE: tl.constexpr,
):
    """Read the keys of the candidates of a BLOCK of tokens; the last program of a head selects. Grid (blocks, B * H).

    With WIDER those that come to the `candidates` where a head takes `most` instead, of the heads that do (SPEC 4.9).
    Candidates int32 [B, H, width], ascending, then the others; scores [B, H, G, width]; chosen int32 and fade
    [B, H, R]; widened int32 [B, H].
    """
    block, head = tl.program_id(0), tl.program_id(1)
    if WIDER:  # noqa: SIM102 - "and" would load in either case
        if tl.load(wide_ptr + head) == 0:
            return
    tokens = cold_pages(counts_ptr) * P
    most = tl.minimum(2 * candidates, tokens)
    order_ptr += head.to(tl.int64) * (room * P)
    edge_ptr += head * 8
    at_ptr += head * width
    token = block * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(order_ptr + token, mask=token < tokens, other=-2147483648)
    mine = (token < tokens) & is_best(key, token, tl.load(edge_ptr + 2), tl.load(edge_ptr + 3))
    begin = tl.load(offset_ptr + head * 2 * BLOCKS + block)
    if WIDER:
        mine = (token < tokens) & is_best(key, token, tl.load(edge_ptr + 4), tl.load(edge_ptr + 5)) & (mine == 0)
        begin = candidates + tl.load(offset_ptr + (head * 2 + 1) * BLOCKS + block)
    tl.store(at_ptr + begin + tl.cumsum(mine.to(tl.int32), 0) - 1, token, mask=mine)
    tl.debug_barrier()
    end = begin + tl.sum(mine.to(tl.int32), 0)
    for start in range(begin, end, BK):
        at = start + tl.arange(0, BK)
        asked = tl.load(at_ptr + at, mask=at < end, other=0)
        _scores(q_ptr, key_ptr, key_table, key_kept, key_aside_ptr, key_slot_ptr, key_sets, hit_ptr, id_ptr, raw_ptr,
                estimate_ptr, asked, at, at < end, scale, head, width, room, H, G, GP, D, P, BD, BK, WIDE)
    if ended_last(done_ptr + head, tl.num_programs(0)):
        raw_ptr += head * G * width
        group_ptr += head * width
        best_ptr += head * G
        chosen_ptr += head * want
        count = candidates
        if WIDER:
            count = most
        _group(raw_ptr, group_ptr, best_ptr, count, width, G, MAX, TILE)
        early = _select(order_ptr, edge_ptr, at_ptr, group_ptr, chosen_ptr, count, want, TILE)
        late = False
        if not WIDER:
            late = (most > candidates) & (LATE * (tl.minimum(want, first) - early) > want)
            tl.store(wide_ptr + head, late.to(tl.int32))
        if not late:
            _settle(raw_ptr, estimate_ptr + head.to(tl.int64) * G * (room * P), at_ptr, chosen_ptr,
                fade_ptr + head * want, best_ptr,
                    want, width, room * P, G, TILE)
