"""One softmax over sinks, hot tokens, selection and pages, in parts that are merged at the end (SPEC 5.1, 5.2, 5.4)."""

from __future__ import annotations

import triton
import triton.language as tl

from .kept import note, where_kept
from .numbers import LEAST, TINY, cold_pages, product, weigh


@triton.jit
def _cap(x, softcap, CAP: tl.constexpr):
    """Apply the soft cap (SPEC 8.1); minus infinity, which hides a token, stays."""
    if CAP:
        y = x / softcap
        z = tl.exp(-2.0 * tl.abs(y))
        far = tl.where(y < 0, z - 1.0, 1.0 - z) / (1.0 + z)
        # 1 - z has lost its last digits near 0, where the first terms of the series have all of them.
        s = y * y
        near = y * (1.0 + s * (-1.0 / 3 + s * (2.0 / 15 + s * (-17.0 / 315 + s * (62.0 / 2835)))))
        return tl.where(x == float("-inf"), x, softcap * tl.where(tl.abs(y) < 0.25, near, far))
    return x


@triton.jit
def _weights(logit, largest_ptr, total_ptr):
    """Return e^(logit - largest) of a part ``[rows, k]``, and note the largest and the sum."""
    most = tl.max(logit, 1)
    weight = tl.exp(logit - tl.maximum(most, LEAST)[:, None])
    tl.store(largest_ptr, most)
    tl.store(total_ptr, tl.sum(weight, 1))
    return weight


@triton.jit
def _tokens(
    q_ptr, keys, values, there, head, member, scale, softcap, part_ptr, largest_ptr, total_ptr, G: tl.constexpr,
    D: tl.constexpr, DV: tl.constexpr, BT: tl.constexpr, ROWS: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr,
    CAP: tl.constexpr, WIDE: tl.constexpr,
):
    """Attend tokens whose keys are read, by pointers [BT] to keys and to values."""
    logit = tl.zeros((ROWS, BT), tl.float32)
    mine = member < G
    for start in range(0, D, BD):
        d = start + tl.arange(0, BD)
        q = tl.load(q_ptr + (head * G + member[:, None]) * D + d[None], mask=mine[:, None] & (d < D)[None], other=0.0)
        key = tl.load(keys[None] + d[:, None], mask=there[None] & (d < D)[:, None], other=0.0)
        logit += product(q, key, WIDE)
    logit = tl.where(mine[:, None] & there[None], _cap(logit * scale, softcap, CAP), float("-inf"))
    weight = _weights(logit, largest_ptr, total_ptr)
    for start in range(0, DV, BV):
        d = start + tl.arange(0, BV)
        value = tl.load(values[:, None] + d[None], mask=there[:, None] & (d < DV)[None], other=0.0)
        tl.store(part_ptr + d[None], weigh(weight, value, WIDE), mask=(d < DV)[None])


@triton.jit
def _selection(
    value_ptr, value_table, value_kept, value_aside_ptr, value_slot_ptr, value_sets, hit_ptr, mean_ptr, id_ptr, at_ptr,
    raw_ptr, chosen_ptr, fade_ptr, item, want, head, member, softcap, part_ptr, largest_ptr, total_ptr, width, room,
    H: tl.constexpr, G: tl.constexpr, GP: tl.constexpr, P: tl.constexpr, DV: tl.constexpr, BV: tl.constexpr,
    CAP: tl.constexpr, WIDE: tl.constexpr,
):
    """Attend selected tokens; the second half of the rows: by the weights of SPEC 5.4, less the pages' means."""
    there = item < want
    chosen = tl.load(chosen_ptr + head * want + item, mask=there, other=0)
    token = tl.load(at_ptr + head * width + chosen, mask=there, other=0)
    g = member % GP
    raw = tl.load(raw_ptr + (head * G + g[:, None]) * width + chosen[None], mask=(g < G)[:, None] & there[None],
            other=float("-inf"))
    logit = _cap(raw, softcap, CAP)
    fade = tl.load(fade_ptr + head * want + item, mask=there, other=0.0)
    weight = _weights(tl.where(member[:, None] < GP, logit, logit + fade[None]), largest_ptr, total_ptr)
    page = tl.load(id_ptr + head // H * room + token // P, mask=there, other=0)
    record = page.to(tl.int64) * H + head % H
    name = page * P + token % P
    far = value_ptr + (record * P + token % P) * DV
    row, slot = where_kept(value_table, value_kept, hit_ptr, far, name, there, head, value_sets, DV, 1)
    aside = head.to(tl.int64) * want + item
    note(value_table, value_slot_ptr, aside, slot, name, there, head, value_sets)
    for start in range(0, DV, BV):
        d = start + tl.arange(0, BV)
        mask = there[:, None] & (d < DV)[None]
        value = tl.load(row[:, None] + d[None], mask=mask, other=0.0)
        if value_table is not None:
            tl.store(value_aside_ptr + aside[:, None] * DV + d[None], value, mask=mask & (slot < 0)[:, None])
        part = weigh(weight, value, WIDE)
        if mean_ptr is not None:
            # A mean value weighs as much as what is selected of its page, in float32.
            mean = tl.load(mean_ptr + record[:, None] * DV + d[None], mask=mask, other=0.0)
            less = tl.dot(tl.where(member[:, None] < GP, 0.0, weight), mean, input_precision="ieee")
            part -= less
        tl.store(part_ptr + d[None], part, mask=(d < DV)[None])


@triton.jit
def _pages(
    estimate_ptr, mean_ptr, id_ptr, page, pages, head, member, softcap, part_ptr, largest_ptr, total_ptr, room,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, DV: tl.constexpr, BT: tl.constexpr, BP: tl.constexpr,
    ROWS: tl.constexpr, BV: tl.constexpr, CAP: tl.constexpr,
):
    """Attend one pseudo-token for each of some pages: what is left of their tokens, by estimates and scores."""
    most = tl.full((ROWS, BP), float("-inf"), tl.float32)
    total = tl.zeros((ROWS, BP), tl.float32)
    row = (head * G + member).to(tl.int64) * (room * P)
    for start in range(0, P, BT):
        at = start + tl.arange(0, BT)
        there = (page < pages)[:, None] & (at < P)[None]
        where = row[:, None, None] + (page[:, None] * P + at[None])[None]
        logit = tl.load(estimate_ptr + where, mask=(member < G)[:, None, None] & there[None], other=float("-inf"))
        logit = _cap(logit, softcap, CAP)
        up = tl.maximum(most, tl.max(logit, 2))
        safe = tl.maximum(up, LEAST)
        total = total * tl.exp(most - safe) + tl.sum(tl.exp(logit - safe[:, :, None]), 2)
        most = up
    logit = tl.where(total > 0, tl.maximum(most, LEAST) + tl.log(tl.maximum(total, TINY)), float("-inf"))
    weight = _weights(logit, largest_ptr, total_ptr)
    record = tl.load(id_ptr + head // H * room + page, mask=page < pages, other=0).to(tl.int64) * H + head % H
    for start in range(0, DV, BV):
        d = start + tl.arange(0, BV)
        mask = (page < pages)[:, None] & (d < DV)[None]
        mean = tl.load(mean_ptr + record[:, None] * DV + d[None], mask=mask, other=0.0)
        tl.store(part_ptr + d[None], tl.dot(weight, mean, input_precision="ieee"), mask=(d < DV)[None])


@triton.jit
def _everything(
    key_ptr, key_table, key_kept, key_sets, value_ptr, value_table, value_kept, value_sets, hit_ptr, id_ptr, item,
    there, head, room, H: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, P: tl.constexpr,
):
    """Return pointers to keys and values of cold tokens, where these are all attended; what is kept stays so."""
    page = tl.load(id_ptr + head // H * room + item // P, mask=there, other=0)
    name = page * P + item % P
    row = (page.to(tl.int64) * H + head % H) * P + item % P
    keys, _slot = where_kept(key_table, key_kept, hit_ptr, key_ptr + row * D, name, there, head, key_sets, D, 0)
    far = value_ptr + row * DV
    values, _slot = where_kept(value_table, value_kept, hit_ptr, far, name, there, head, value_sets, DV, 1)
    return keys, values


@triton.jit(do_not_specialize=["room", "key_sets", "value_sets", "A", "B", "C", "E"])
def attend(
    q_ptr, sink_k, sink_v, hot_k, hot_v, key_ptr, key_table, key_kept, key_sets, value_ptr, value_table, value_kept,
    value_aside_ptr, value_slot_ptr, value_sets, hit_ptr, mean_ptr, id_ptr, counts_ptr, at_ptr, raw_ptr, chosen_ptr,
    fade_ptr, estimate_ptr, part_ptr, largest_ptr, total_ptr, scale, softcap, SINKS, HOT, room, want, width, A, B, C,
    E, H: tl.constexpr, G: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, P: tl.constexpr,
    BT: tl.constexpr, BP: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr, CAP: tl.constexpr, WIDE: tl.constexpr,
):
    """Attend one part. Grid (E, B * H): [0, A) are sinks, [A, B) hot tokens, [B, C) the selection, [C, E) pages.

    Where nothing is selected, [B, E) are the tokens of cold pages, all attended (SPEC 4.1). Sinks [B, H, SINKS, D] and
    hot tokens [B, H, HOT, D], a ring, as many as counts tell (`numbers`); page ids [B, room]. Parts
    [B, H, E, 2 GP, DV], largest and sum [B, H, E, 2 GP].
    """
    split, head = tl.program_id(0), tl.program_id(1)
    ROWS: tl.constexpr = 2 * GP
    member = tl.arange(0, ROWS)
    place = (head * E + split).to(tl.int64) * ROWS + member
    part_ptr += place[:, None] * DV
    largest_ptr += place
    total_ptr += place
    item = tl.arange(0, BT)
    pages = cold_pages(counts_ptr)
    if split < A:
        item += split * BT
        row = head.to(tl.int64) * SINKS + item
        there = item < tl.load(counts_ptr)
        _tokens(q_ptr, sink_k + row * D, sink_v + row * DV, there, head, member, scale, softcap, part_ptr,
                largest_ptr, total_ptr, G, D, DV, BT, ROWS, BD, BV, CAP, WIDE)
    elif split < B:
        item += (split - A) * BT
        at = tl.load(counts_ptr + 2) + item
        row = head.to(tl.int64) * HOT + tl.where(at < HOT, at, at - HOT)
        there = item < tl.load(counts_ptr + 1)
        _tokens(q_ptr, hot_k + row * D, hot_v + row * DV, there, head, member, scale, softcap, part_ptr,
                largest_ptr, total_ptr, G, D, DV, BT, ROWS, BD, BV, CAP, WIDE)
    elif chosen_ptr is None:
        item += (split - B) * BT
        there = item < pages * P
        keys, values = _everything(key_ptr, key_table, key_kept, key_sets, value_ptr, value_table, value_kept,
                value_sets, hit_ptr, id_ptr, item, there, head, room, H, D, DV, P)
        _tokens(q_ptr, keys, values, there, head, member, scale, softcap, part_ptr, largest_ptr, total_ptr, G, D, DV,
                BT, ROWS, BD, BV, CAP, WIDE)
    elif split < C:
        _selection(value_ptr, value_table, value_kept, value_aside_ptr, value_slot_ptr, value_sets, hit_ptr, mean_ptr,
                id_ptr, at_ptr, raw_ptr, chosen_ptr, fade_ptr, (split - B) * BT + item, want, head, member, softcap,
                part_ptr, largest_ptr, total_ptr, width, room, H, G, GP, P, DV, BV, CAP, WIDE)
    else:  # 32 tokens of 16 pages at once: of more, the registers of Triton 3.2 spill
        _pages(estimate_ptr, mean_ptr, id_ptr, (split - C) * BP + tl.arange(0, BP), pages, head, member, softcap,
                part_ptr,
               largest_ptr, total_ptr, room, H, G, P, DV, 32, BP, ROWS, BV, CAP)
