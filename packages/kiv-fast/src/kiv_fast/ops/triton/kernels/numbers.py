"""What the kernels share: products, the order of numbers, the n-th best of many, and which program ends last.

Numbers are added in float32 whatever the dtype of keys and values is; `WIDE` widens these before every product, as
Triton's interpreter needs for bfloat16.
"""

from __future__ import annotations

import triton
import triton.language as tl

DIGITS = tl.constexpr(256)
"""Values of the eight bits that a selection looks at in one pass."""

LEAST = tl.constexpr(-3.4e38)
"""Stands in for the logarithm of no mass, so that a difference with it is a number."""

TINY = tl.constexpr(1e-37)


@triton.jit
def product(a, b, WIDE: tl.constexpr):
    """Multiply matrices ``[n, k]`` and ``[k, m]``; exact products, summed in float32."""
    if WIDE:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def weigh(weight, value, WIDE: tl.constexpr):
    """Multiply weights float32 ``[n, k]`` by values ``[k, m]``; for values of 16 bits a weight is the sum of two."""
    if WIDE or value.dtype == tl.float32:
        return tl.dot(weight, value.to(tl.float32), input_precision="ieee")
    most = weight.to(value.dtype)
    rest = (weight - most.to(tl.float32)).to(value.dtype)
    return tl.dot(most, value, tl.dot(rest, value))


@triton.jit
def cold_pages(counts_ptr):
    """Return N, which no grid depends on: int32 [4] are the sinks, hot tokens, the place of their first, cold pages."""
    return tl.load(counts_ptr + 3)


@triton.jit
def order(x):
    """Turn float32 into int32 of the same order, both zeros alike."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def number(key):
    """Turn what `order` returned into float32 again."""
    return tl.where(key < 0, key ^ 0x7FFFFFFF, key).to(tl.float32, bitcast=True)


@triton.jit
def ended_last(counter_ptr, programs):
    """Tell whether this program is the last of several to come here, which then sees what all have stored.

    The counter is 0 again when the last one has come. Where others' numbers are read, ".cg" passes over what a
    processor has in a cache of its own.
    """
    tl.debug_barrier()
    last = tl.atomic_add(counter_ptr, 1, sem="acq_rel") == programs - 1
    if last:
        tl.store(counter_ptr, 0)
    return last


@triton.jit
def _counts(
    key_ptr, place_ptr, listed, count, known, prefix, shift: tl.constexpr, PLACES: tl.constexpr,
    RANKS: tl.constexpr, TILE: tl.constexpr,
):
    """Count, for each rank, by eight bits the items whose higher bits are those of `prefix`: ``[RANKS, 256]``.

    With PLACES of the places of the items whose key is `known`.
    """
    rank, bins = tl.arange(0, RANKS), tl.arange(0, RANKS * DIGITS)
    seen = tl.zeros((RANKS * DIGITS,), tl.int32)
    for start in range(0, count, TILE):
        item = start + tl.arange(0, TILE)
        bits = tl.load(key_ptr + item, mask=item < count, other=0, cache_modifier=".cg") ^ -2147483648
        live = (item < count)[None] & (rank >= 0)[:, None]
        if PLACES:
            live = live & (bits[None] == known[:, None])
            bits = tl.where(listed, tl.load(place_ptr + item, mask=(item < count) & listed, other=0,
                cache_modifier=".cg"), item)
        bits = bits.to(tl.uint32, bitcast=True)
        if shift < 24:
            live = live & ((bits >> (shift + 8))[None] == (prefix >> (shift + 8))[:, None])
        digit = ((bits >> shift) & (DIGITS - 1)).to(tl.int32)
        each = tl.where(live, rank[:, None] * DIGITS + digit[None], 0)
        seen += tl.histogram(tl.reshape(each, (RANKS * TILE,)), RANKS * DIGITS)
        seen -= tl.where(bins == 0, RANKS * TILE - tl.sum(tl.sum(live.to(tl.int32), 1), 0), 0)
    return tl.reshape(seen, (RANKS, DIGITS))


@triton.jit
def nth_best(key_ptr, place_ptr, listed, count, want, RANKS: tl.constexpr, TILE: tl.constexpr):
    """Find the key of the `want`-th best of `count` items, int32 as `order` has it, and which of that key are taken.

    `want` are RANKS ranks at once. An item is among the best if its key is larger, or equal and its place not above the
    second number: of equal ones those come first whose place is lower (SPEC 1.3). An item's place is in `place_ptr` if
    the items are `listed`, else it is its number.
    """
    bins = tl.arange(0, DIGITS)[None]
    key = tl.zeros((RANKS,), tl.uint32)
    same = want
    for step in tl.static_range(4):
        seen = _counts(key_ptr, place_ptr, listed, count, want, key, 24 - 8 * step, False, RANKS, TILE)
        above = tl.sum(seen, 1)[:, None] - tl.cumsum(seen, 1)
        digit = tl.min(tl.where(above < want[:, None], bins, DIGITS - 1), 1)
        here = bins == digit[:, None]
        want -= tl.sum(tl.where(here, above, 0), 1)
        same = tl.sum(tl.where(here, seen, 0), 1)
        key = key | (digit.to(tl.uint32) << (24 - 8 * step))
    least = key.to(tl.int32, bitcast=True)
    last = tl.full((RANKS,), 2147483647, tl.int32)
    if tl.max(same - want, 0) > 0:
        place = tl.zeros((RANKS,), tl.uint32)
        for step in tl.static_range(4):
            seen = _counts(key_ptr, place_ptr, listed, count, least, place, 24 - 8 * step, True, RANKS, TILE)
            upto = tl.cumsum(seen, 1)
            digit = tl.min(tl.where(upto >= want[:, None], bins, DIGITS - 1), 1)
            want -= tl.sum(tl.where(bins == digit[:, None], upto - seen, 0), 1)
            place = place | (digit.to(tl.uint32) << (24 - 8 * step))
        last = place.to(tl.int32, bitcast=True)
    return least ^ -2147483648, last


@triton.jit
def is_best(key, place, least, last):
    """Tell which items are among the best that `nth_best` found."""
    return (key > least) | ((key == least) & (place <= last))
