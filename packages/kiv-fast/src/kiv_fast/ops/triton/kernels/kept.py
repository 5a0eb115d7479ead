"""Rows of keys or values that the device keeps of those it has read from host memory: found, and replaced.

A cache of `sets` sets of WAYS rows for each head. A row is named by the id of its page and its place there, and the
name tells its set; a new row takes the place of the one in its set that was not asked for longest. Numbers are the same
wherever they are read. While a step looks rows up nothing is replaced: what it misses it copies aside as it reads it,
and its last launch puts that into the cache.

Of each head a table int32 [sets * (2 WAYS + 1) + 1]: names, -1 where no row is; the steps in which they were last
asked for; how many rows each set has missed in this step, 0 between steps; the number of this step.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ....device.kept import WAYS as _WAYS
from .numbers import ended_last

WAYS = tl.constexpr(_WAYS)

MISSED = tl.constexpr(-2)
"""A missed row is noted as this less its name; a row that is kept by its place, and above all places once it is new."""


@triton.jit
def _table(table_ptr, head, sets):
    """Return the table of a head."""
    return table_ptr + head.to(tl.int64) * (sets * (2 * WAYS + 1) + 1)


@triton.jit
def where_kept(table_ptr, kept_ptr, hit_ptr, far, name, there, head, sets, W: tl.constexpr, VALUES: tl.constexpr):
    """Return pointers to rows of W numbers, which lie at `far` or are kept; and places in the cache, -1 of others."""
    slot = tl.full(name.shape, -1, tl.int32)
    if table_ptr is not None:
        place = (name % sets * WAYS)[:, None] + tl.arange(0, WAYS)[None]
        found = tl.load(_table(table_ptr, head, sets) + place, mask=there[:, None], other=-1) == name[:, None]
        slot = tl.max(tl.where(found & there[:, None], place, -1), 1)
        tl.atomic_add(hit_ptr + head * 2 + VALUES, tl.sum((slot >= 0).to(tl.int32), 0), sem="relaxed")
        near = kept_ptr + (head.to(tl.int64) * sets * WAYS + slot) * W
        # As whole numbers: on AMD, Triton 3.6 and 3.7 fail where a pointer is one of two. That hides how rows are
        # aligned, which is told again of a sum: of 0, but nothing knows.
        chosen = tl.where(slot >= 0, near.to(tl.int64), far.to(tl.int64)).to(far.dtype) + tl.minimum(slot + 1, 0)
        if W * far.dtype.element_ty.primitive_bitwidth % 128 == 0:
            chosen = tl.multiple_of(chosen, 16)
        far = chosen
    return far, slot


@triton.jit
def note(table_ptr, slot_ptr, at, slot, name, there, head, sets):
    """Note that rows are asked for, and, at places [n], where they are or that they are missed."""
    if table_ptr is not None:
        table_ptr = _table(table_ptr, head, sets)
        now = tl.load(table_ptr + sets * (2 * WAYS + 1))
        tl.store(table_ptr + sets * WAYS + slot, now, mask=there & (slot >= 0))
        tl.store(slot_ptr + at, tl.where(slot >= 0, slot, MISSED - name), mask=there)


@triton.jit
def _put(
    table_ptr, kept_ptr, aside_ptr, slot_ptr, item, count, sets, W: tl.constexpr, BW: tl.constexpr,
):
    """Put missed rows, of some that were noted, in place of those that were not asked for longest, nor in this step."""
    noted = tl.load(slot_ptr + item, mask=item < count, other=0, cache_modifier=".cg")
    new = noted < 0
    if tl.max(new.to(tl.int32), 0) > 0:
        name = MISSED - noted
        home = tl.where(new, name % sets, 0)
        turn = tl.atomic_add(table_ptr + 2 * WAYS * sets + home, 1, mask=new, sem="relaxed")
        now = tl.load(table_ptr + sets * (2 * WAYS + 1))
        way = tl.arange(0, WAYS)
        place = home[:, None] * WAYS + way[None]
        asked = tl.load(table_ptr + sets * WAYS + place)
        other = tl.load(table_ptr + sets * WAYS + home[:, None, None] * WAYS + way[None, None])
        older = (other < asked[:, :, None]) | ((other == asked[:, :, None]) & (way[None, None] < way[None, :, None]))
        mine = (tl.sum(older.to(tl.int32), 2) == turn[:, None]) & (asked < now) & new[:, None]
        slot = tl.max(tl.where(mine, place, -1), 1)
        put = slot >= 0
        tl.store(table_ptr + slot, name, mask=put)
        tl.store(slot_ptr + item, sets * WAYS + slot, mask=put)
        for start in range(0, W, BW):
            w = start + tl.arange(0, BW)
            mask = put[:, None] & (w < W)[None]
            row = tl.load(aside_ptr + item.to(tl.int64)[:, None] * W + w[None], mask=mask, other=0.0,
                cache_modifier=".cg")
            tl.store(kept_ptr + slot.to(tl.int64)[:, None] * W + w[None], row, mask=mask)


@triton.jit
def _end(table_ptr, slot_ptr, count, sets, TILE: tl.constexpr):
    """End a head's step: what is new was asked for in it."""
    now = tl.load(table_ptr + sets * (2 * WAYS + 1))
    for start in range(0, count, TILE):
        item = start + tl.arange(0, TILE)
        there = item < count
        noted = tl.load(slot_ptr + item, mask=there, other=0, cache_modifier=".cg")
        place = noted - sets * WAYS
        tl.store(table_ptr + sets * WAYS + place, now, mask=there & (place >= 0))
        home = tl.where(noted < 0, (MISSED - noted) % sets, place // WAYS)
        tl.store(table_ptr + 2 * WAYS * sets + home, 0, mask=there & ((noted < 0) | (place >= 0)))
    tl.store(table_ptr + sets * (2 * WAYS + 1), now + 1)


@triton.jit
def count(use_ptr, hit_ptr, hits_ptr, keys, values, head):
    """Count what a head has asked for, int64 [4], and what of it was kept, int32 [2] of this step."""
    for each in tl.static_range(2):
        hits = tl.load(hit_ptr + head * 2 + each)
        tl.store(hit_ptr + head * 2 + each, 0)
        tl.store(hits_ptr + head * 2 + each, hits)
        use = use_ptr + head * 4 + 2 * each
        tl.store(use, tl.load(use) + hits)
        tl.store(use + 1, tl.load(use + 1) + tl.where(each == 0, keys, values))


@triton.jit
def renew(
    key_table, key_kept, key_aside, key_slot, key_sets, value_table, value_kept, value_aside, value_slot, value_sets,
    done_ptr, head, part, parts, keys, want, width, D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr,
    BV: tl.constexpr, PART: tl.constexpr, BN: tl.constexpr, TILE: tl.constexpr,
):
    """Put into a head's cache what its step has missed, of PART noted keys and values; the last program ends the step.

    Parameters
    ----------
    keys, want
        Keys and values that the head has asked for.
    """
    key_table, value_table = _table(key_table, head, key_sets), _table(value_table, head, value_sets)
    key_slot += head * width
    value_slot += head * want
    lane = head.to(tl.int64)
    for piece in range(part * PART, tl.minimum((part + 1) * PART, keys), BN):
        _put(key_table, key_kept + lane * key_sets * WAYS * D, key_aside + lane * width * D, key_slot,
            piece + tl.arange(0, BN), keys, key_sets, D, BD)
    for piece in range(part * PART, tl.minimum((part + 1) * PART, want), BN):
        _put(value_table, value_kept + lane * value_sets * WAYS * DV, value_aside + lane * want * DV, value_slot,
            piece + tl.arange(0, BN), want, value_sets, DV, BV)
    if ended_last(done_ptr + head, parts):
        _end(key_table, key_slot, keys, key_sets, TILE)
        _end(value_table, value_slot, want, value_sets, TILE)
