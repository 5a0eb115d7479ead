"""The end of a step: the parts of a softmax merged into the output, with learned sinks and the shift of mean values
(SPEC 5, 8.2); and what was missed put into the cache.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .append import note_odd
from .kept import count, renew
from .numbers import LEAST, TINY, cold_pages


@triton.jit(do_not_specialize=["B", "C", "E", "key_sets", "value_sets", "lanes", "parts"])
def combine(
    q_ptr, counts_ptr, odd_ptr, part_ptr, largest_ptr, total_ptr, learned_ptr, out_ptr, share_ptr, top_ptr, seen_ptr,
    count_ptr, key_table, key_kept, key_aside_ptr, key_slot_ptr, key_sets, value_table, value_kept, value_aside_ptr,
    value_slot_ptr, value_sets, use_ptr, hit_ptr, hits_ptr, wide_ptr, done_ptr, candidates, want, width, lanes, parts,
    learned_b, learned_h, B, C, E, H: tl.constexpr, G: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, DV:
    tl.constexpr, P: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr, BE: tl.constexpr, BK: tl.constexpr, BINS:
    tl.constexpr, PART: tl.constexpr,
):
    """Merge the parts, with learned sinks and the shift of mean values. Grid (B * H * (G + parts), DV / BV).

    Parts [B, C) are the selection, [C, E) pages. Learned sinks by their strides of sequences and heads. Output
    [B, H, G, DV]; estimated share of mass [B, H, G]. What the next step counts from 0 on is set to that. The third
    word of `odd` is set if a query is not finite. The last `parts` programs for each of B * H lanes `renew` its cache.
    """
    row, block = tl.program_id(0), tl.program_id(1)
    if row >= lanes * G:
        if key_table is not None:  # noqa: SIM102 - "and" would compile the rest in either case
            if block == 0:
                head, piece = (row - lanes * G) // parts, (row - lanes * G) % parts
                most = tl.minimum(2 * candidates, cold_pages(counts_ptr) * P)
                keys = tl.where(tl.load(wide_ptr + head) == 0, candidates, most)
                renew(key_table, key_kept, key_aside_ptr, key_slot_ptr, key_sets, value_table, value_kept,
                    value_aside_ptr, value_slot_ptr, value_sets, done_ptr, head, piece, parts, keys, want, width, D, DV,
                    BD, BV, PART, BK, 512)
        return
    head, g = row // G, row % G
    if learned_ptr is not None:
        learned = tl.load(learned_ptr + row // (H * G) * learned_b + row % (H * G) * learned_h).to(tl.float32)
    d = block * BV + tl.arange(0, BV)
    split = tl.arange(0, BE)
    most = tl.full((), float("-inf"), tl.float32)
    high = tl.full((), float("-inf"), tl.float32)
    for start in range(0, E, BE):
        at = start + split
        place = (head * E + at) * (2 * GP) + g
        most = tl.maximum(most, tl.max(tl.load(largest_ptr + place, mask=at < E, other=float("-inf")), 0))
        high = tl.maximum(high, tl.max(tl.load(largest_ptr + place + GP, mask=(at >= B) & (at < C),
            other=float("-inf")), 0))
    if learned_ptr is not None:
        most = tl.maximum(most, learned)
    most = tl.maximum(most, LEAST)
    high = tl.maximum(high, LEAST)
    total = tl.zeros((), tl.float32)
    guessed = tl.zeros((), tl.float32)
    weight = tl.zeros((), tl.float32)
    out = tl.zeros((BV,), tl.float32)
    shift = tl.zeros((BV,), tl.float32)
    for start in range(0, E, BE):
        at = start + split
        place = (head * E + at) * (2 * GP) + g
        factor = tl.exp(tl.load(largest_ptr + place, mask=at < E, other=float("-inf")) - most)
        mass = factor * tl.load(total_ptr + place, mask=at < E, other=0.0)
        total += tl.sum(mass, 0)
        guessed += tl.sum(tl.where(at >= C, mass, 0.0), 0)
        mask = (at < E)[:, None] & (d < DV)[None]
        part = tl.load(part_ptr + place.to(tl.int64)[:, None] * DV + d[None], mask=mask, other=0.0)
        out += tl.sum(factor[:, None] * part, 0)
        chosen = (at >= B) & (at < C)
        factor = tl.exp(tl.load(largest_ptr + place + GP, mask=chosen, other=float("-inf")) - high)
        weight += tl.sum(factor * tl.load(total_ptr + place + GP, mask=chosen, other=0.0), 0)
        part = tl.load(part_ptr + (place + GP).to(tl.int64)[:, None] * DV + d[None], mask=mask & chosen[:, None],
            other=0.0)
        shift += tl.sum(factor[:, None] * part, 0)
    if learned_ptr is not None:
        total += tl.exp(learned - most)
    total = tl.maximum(total, TINY)
    # Without a pseudo-token nothing is moved, by whatever number (SPEC 2.5).
    out += tl.where(guessed > 0, guessed * 0.5 * shift / tl.maximum(weight, TINY), 0.0)
    tl.store(out_ptr + row * DV + d, out / total, mask=d < DV)
    if block == 0:
        for start in range(0, D, BD):
            at = start + tl.arange(0, BD)
            note_odd(tl.load(q_ptr + row * D + at, mask=at < D, other=0.0), odd_ptr + 2)
        tl.store(share_ptr + row, guessed / total)
        if top_ptr is not None:
            tl.store(top_ptr + row, -2147483648)
            if g == 0:
                tl.store(seen_ptr + head * BINS + tl.arange(0, BINS), tl.zeros((BINS,), tl.int32))
                tl.store(count_ptr + head, 0)
        if key_table is not None:  # noqa: SIM102 - "and" would compile the rest in either case
            if g == 0:
                tokens = cold_pages(counts_ptr) * P
                keys = tokens
                values = tokens
                if wide_ptr is not None:
                    wide = tl.load(wide_ptr + head) != 0
                    keys = tl.where(wide, tl.minimum(2 * candidates, tokens), candidates)
                    values = want
                count(use_ptr, hit_ptr, hits_ptr, keys, values, head)
