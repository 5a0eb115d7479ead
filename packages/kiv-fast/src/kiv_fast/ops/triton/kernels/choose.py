"""The best tokens by the order of group scores: not which, but from which score on (SPEC 1.3, 4.4, 4.9)."""

from __future__ import annotations

import triton
import triton.language as tl

from .numbers import cold_pages, ended_last, is_best, nth_best


@triton.jit
def _list(
    order_ptr, seen_ptr, item_ptr, place_ptr, count_ptr, head, tokens, most, LIST: tl.constexpr, BT: tl.constexpr,
    BINS: tl.constexpr,
):
    """List the tokens whose highest eleven bits are those of the `most`-th best or more, if they are at most LIST."""
    bins = tl.arange(0, BINS)
    seen = tl.load(seen_ptr + head * BINS + bins)
    above = tl.sum(seen, 0) - tl.cumsum(seen, 0)
    least = tl.min(tl.where(above < most, bins, BINS - 1), 0)
    listed = tl.sum(tl.where(bins >= least, seen, 0), 0) <= LIST
    if listed:
        token = tl.program_id(0) * BT + tl.arange(0, BT)
        key = tl.load(order_ptr + token, mask=token < tokens, other=-2147483648)
        mine = (token < tokens) & ((key >> 21) + BINS // 2 >= least)
        count = tl.sum(mine.to(tl.int32), 0)
        if count > 0:
            at = tl.atomic_add(count_ptr + head, count, sem="relaxed") + tl.cumsum(mine.to(tl.int32), 0) - 1
            tl.store(item_ptr + head * LIST + at, key, mask=mine)
            tl.store(place_ptr + head * LIST + at, token, mask=mine)
    return listed


@triton.jit(do_not_specialize=["room"])
def choose(
    counts_ptr, order_ptr, seen_ptr, item_ptr, place_ptr, count_ptr, done_ptr, edge_ptr, offset_ptr, room, first,
    candidates, P: tl.constexpr, LIST: tl.constexpr, BT: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
    TILE: tl.constexpr, BINS: tl.constexpr,
):
    """Find what bounds the `first`, `candidates` and `most` best tokens of a head. Grid (room * P / BT, B * H).

    Edges int32 [B, H, 4, 2]: a key and a place, as for `is_best`, the last two alike. Offsets int32
    [B, H, 2, BLOCKS]: of each BLOCK of tokens how many candidates lie before it, and how many of the others of the
    `most`.
    """
    head = tl.program_id(1)
    tokens = cold_pages(counts_ptr) * P
    most = tl.minimum(2 * candidates, tokens)
    order_ptr += head.to(tl.int64) * (room * P)
    listed = _list(order_ptr, seen_ptr, item_ptr, place_ptr, count_ptr, head, tokens, most, LIST, BT, BINS)
    if ended_last(done_ptr + head, tl.num_programs(0)):
        # Where too many have nearly the same score, all tokens are gone through.
        item_ptr += head * LIST
        place_ptr += head * LIST
        # As whole numbers: on AMD, Triton 3.6 fails where a pointer is one of two.
        keys = tl.where(listed, item_ptr.to(tl.int64), order_ptr.to(tl.int64)).to(item_ptr.dtype)
        count = tl.where(listed, tl.load(count_ptr + head, cache_modifier=".cg"), tokens)
        edge_ptr += head * 8
        rank = tl.arange(0, 4)
        want = tl.where(rank == 0, first, tl.where(rank == 1, candidates, most))
        least, last = nth_best(keys, place_ptr, listed, count, want, 4, TILE)
        tl.store(edge_ptr + 2 * rank, least)
        tl.store(edge_ptr + 2 * rank + 1, last)
        tl.debug_barrier()
        blocks = tl.arange(0, BLOCKS)
        taken = tl.zeros((BLOCKS,), tl.int32)
        others = tl.zeros((BLOCKS,), tl.int32)
        for start in range(0, count, TILE):
            item = start + tl.arange(0, TILE)
            there = item < count
            key = tl.load(keys + item, mask=there, other=-2147483648, cache_modifier=".cg")
            token = tl.where(listed, tl.load(place_ptr + item, mask=there & listed, other=0, cache_modifier=".cg"),
                    item)
            best = there & is_best(key, token, tl.load(edge_ptr + 2), tl.load(edge_ptr + 3))
            other = there & is_best(key, token, tl.load(edge_ptr + 4), tl.load(edge_ptr + 5)) & (best == 0)
            taken += tl.histogram(tl.where(best, token // BLOCK, 0), BLOCKS)
            taken -= tl.where(blocks == 0, TILE - tl.sum(best.to(tl.int32), 0), 0)
            others += tl.histogram(tl.where(other, token // BLOCK, 0), BLOCKS)
            others -= tl.where(blocks == 0, TILE - tl.sum(other.to(tl.int32), 0), 0)
        tl.store(offset_ptr + head * 2 * BLOCKS + blocks, tl.cumsum(taken, 0) - taken)
        tl.store(offset_ptr + (head * 2 + 1) * BLOCKS + blocks, tl.cumsum(others, 0) - others)
