"""Estimates of all cold tokens from their codes, and the order of group scores (SPEC 4.2, 4.3)."""

from __future__ import annotations

import triton
import triton.language as tl

from .numbers import cold_pages, number, order, product

WHOLE = tl.constexpr(12582912.0)
"""1.5 * 2^23: a float32 below 2^22 becomes a whole number, halves the even one, when it is added and taken off."""

MOST_WEIGHT = tl.constexpr(8192.0)

SMALLEST, LARGEST = tl.constexpr(2.0**-114), tl.constexpr(2.0**127)
"""The unit is chosen as if the largest product lay between these: it is at least 2^-126, at most 2^115."""


@triton.jit
def _weight(
    q_ptr, channel_ptr, step_ptr, scale, word, member, W: tl.constexpr, WORDS: tl.constexpr, G: tl.constexpr,
    D: tl.constexpr, WB: tl.constexpr,
):
    """Return a of SPEC 4.2, ``[members, 8 * WB]``, of the channels of some words: four bits after the other of each."""
    at = tl.arange(0, 8 * WB)
    channel = 4 * (word + at // 8) + at % 8 // 2 + at % 2 * W
    there = word + at // 8 < WORDS
    which = tl.load(channel_ptr + channel, mask=there, other=0).to(tl.int32)
    step = tl.load(step_ptr + channel, mask=there, other=0.0)
    q = tl.load(q_ptr + member[:, None] * D + which[None], mask=(member < G)[:, None] & there[None], other=0.0)
    return (q.to(tl.float32) * scale) * step[None]


@triton.jit(do_not_specialize=["room"])
def scan(
    q_ptr, id_ptr, counts_ptr, code_ptr, channel_ptr, step_ptr, base_ptr, estimate_ptr, top_ptr, scale, room, H:
    tl.constexpr, G: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, P: tl.constexpr, W: tl.constexpr, BD:
    tl.constexpr, WB: tl.constexpr, BT: tl.constexpr, WIDE: tl.constexpr,
):
    """Estimate the tokens of a part of a page, and find the largest of each member. Grid (room * parts, B * H).

    q [B, H, G, D]; page ids [B, room], the first N of them; codes, channels, step and base by page id as in
    `index.index`; estimates [B, H, G, room * P]; largest [B, H, G] as `order` has it.
    """
    PARTS: tl.constexpr = (P + BT - 1) // BT
    BLOCKS: tl.constexpr = (P + 15) // 16
    WORDS: tl.constexpr = W // 4
    part, head = tl.program_id(0), tl.program_id(1)
    page, first = part // PARTS, part % PARTS * BT
    if page >= cold_pages(counts_ptr):
        return
    record = tl.load(id_ptr + head // H * room + page).to(tl.int64) * H + head % H
    q_ptr += head * G * D
    channel_ptr += record * (2 * W)
    step_ptr += record * (2 * W)
    member = tl.arange(0, 2 * GP) % GP
    low = tl.zeros((2 * GP,), tl.float32)
    for start in range(0, D, BD):
        d = start + tl.arange(0, BD)
        q = tl.load(q_ptr + member[:, None] * D + d[None], mask=(member < G)[:, None] & (d < D)[None], other=0.0)
        base = tl.load(base_ptr + record * D + d, mask=d < D, other=0.0)
        low += tl.sum((q.to(tl.float32) * scale) * base[None], 1)
    a = _weight(q_ptr, channel_ptr, step_ptr, scale, 0, member, W, WORDS, G, D, WB)
    most = tl.max(tl.abs(a), 1)
    for word in range(WB, WORDS, WB):
        more = _weight(q_ptr, channel_ptr, step_ptr, scale, word, member, W, WORDS, G, D, WB)
        most = tl.maximum(most, tl.max(tl.abs(more), 1))
    # The exponent of the largest product, less twelve: a power of two, exactly.
    most = tl.minimum(tl.maximum(most, SMALLEST), LARGEST)
    exponent = (most.to(tl.int32, bitcast=True) >> 23) - 12
    unit = (exponent << 23).to(tl.float32, bitcast=True)
    inverse = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    token = first + tl.arange(0, BT)
    total = tl.zeros((2 * GP, BT), tl.float32)
    for word in range(0, WORDS, WB):
        if WORDS > WB:
            a = _weight(q_ptr, channel_ptr, step_ptr, scale, word, member, W, WORDS, G, D, WB)
        whole = (a * inverse[:, None] + WHOLE) - WHOLE
        whole = tl.minimum(tl.maximum(whole, -MOST_WEIGHT), MOST_WEIGHT)
        # Fourteen bits as 128 * high + low, each of which numbers of 16 bits hold exactly.
        high = tl.floor(whole * (1.0 / 128))
        half = tl.where((tl.arange(0, 2 * GP) < GP)[:, None], high, whole - 128 * high)
        at = word + tl.arange(0, WB)
        where = ((record * BLOCKS + token[None] // 16) * WORDS + at[:, None]) * 16 + token[None] % 16
        codes = tl.load(code_ptr + where, mask=(at < WORDS)[:, None] & (token < P)[None], other=0)
        codes = (codes[:, None, :] >> (4 * tl.arange(0, 8))[None, :, None]) & 15
        codes = tl.reshape(codes, (8 * WB, BT))
        total += product(half.to(tl.float16), codes.to(tl.float16), WIDE)
    # Sums of whole numbers are exact up to here, and as int32.
    halves = tl.reshape(total.to(tl.int32), (2, GP, BT))
    both = tl.sum(halves * tl.where(tl.arange(0, 2) == 0, 128, 1)[:, None, None], 0)
    low = tl.max(tl.reshape(low, (2, GP)), 0)
    unit = tl.max(tl.reshape(unit, (2, GP)), 0)
    estimate = low[:, None] + unit[:, None] * both.to(tl.float32)
    mine = tl.arange(0, GP)
    seen = (mine < G)[:, None] & (token < P)[None]
    place = (head * G + mine).to(tl.int64)[:, None] * (room * P) + page * P + token[None]
    tl.store(estimate_ptr + place, estimate, mask=seen)
    largest = tl.max(tl.where(seen, order(estimate), -2147483648), 1)
    tl.atomic_max(top_ptr + head * G + mine, largest, mask=mine < G, sem="relaxed")


@triton.jit(do_not_specialize=["room"])
def rank(
    counts_ptr, estimate_ptr, top_ptr, order_ptr, seen_ptr, room, G: tl.constexpr, P: tl.constexpr, MAX: tl.constexpr,
    BT: tl.constexpr, BINS: tl.constexpr,
):
    """Turn estimates into group scores, as `order` has them, and count these. Grid (room * P / BT, B * H).

    Keys [B, H, room * P]; seen int32 [B, H, BINS], zeros before.
    """
    block, head = tl.program_id(0), tl.program_id(1)
    token = block * BT + tl.arange(0, BT)
    tokens = cold_pages(counts_ptr) * P
    if block * BT >= tokens:
        return
    there = token < tokens
    group = tl.zeros((BT,), tl.float32)
    if MAX:
        group += float("-inf")
    for g in range(G):
        row = head * G + g
        estimate = tl.load(estimate_ptr + row.to(tl.int64) * (room * P) + token, mask=there, other=float("-inf"))
        if MAX:
            group = tl.maximum(group, estimate)
        else:
            group += tl.exp(estimate - number(tl.load(top_ptr + row)))
    key = order(group)
    tl.store(order_ptr + head.to(tl.int64) * (room * P) + token, key, mask=there)
    seen = tl.histogram(tl.where(there, (key >> 21) + BINS // 2, 0), BINS)
    bins = tl.arange(0, BINS)
    seen -= tl.where(bins == 0, BT - tl.sum(there.to(tl.int32), 0), 0)
    tl.atomic_add(seen_ptr + head * BINS + bins, seen, mask=seen > 0, sem="relaxed")
