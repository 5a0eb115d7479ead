"""One token of each sequence into the hot window, and whether its numbers are finite (SPEC 2.5, 9.1)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _copy(
    new_ptr, window_ptr, odd_ptr, sequence, head, capacity, at, H: tl.constexpr, W: tl.constexpr, BW: tl.constexpr,
):
    """Copy the token of one head."""
    row, w = tl.program_id(0), tl.arange(0, BW)
    x = tl.load(new_ptr + row // H * sequence + row % H * head + w, mask=w < W, other=0.0)
    tl.store(window_ptr + (row.to(tl.int64) * capacity + at) * W + w, x, mask=w < W)
    note_odd(x, odd_ptr)


@triton.jit
def note_odd(x, odd_ptr):
    """Set a word if a number is not finite. The word may be in host memory: it is written, never read."""
    x = x.to(tl.float32)
    if tl.max((x - x != 0.0).to(tl.int32), 0) > 0:
        tl.store(odd_ptr, 1)


@triton.jit(do_not_specialize=["sinks", "hot", "begin", "pages"])
def append(
    new_k, new_v, hot_k, hot_v, counts_ptr, odd_ptr, key_b, key_h, value_b, value_h, sinks, hot, begin, pages, HOT,
    H: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr,
):
    """Write one token of each sequence behind the others of its window, and tell of all lengths. Grid (B * H,).

    Key and value [B, H, 1, D] by their strides of sequences and heads; windows [B, H, HOT, D], rings of
    which `hot` from `begin` on are tokens now. Counts as in `numbers`. The first word of `odd` is of keys, the second
    of values.
    """
    at = (begin + hot - 1) % HOT
    _copy(new_k, hot_k, odd_ptr, key_b, key_h, HOT, at, H, D, DP)
    _copy(new_v, hot_v, odd_ptr + 1, value_b, value_h, HOT, at, H, DV, DVP)
    if tl.program_id(0) == 0:
        tl.store(counts_ptr, sinks)
        tl.store(counts_ptr + 1, hot)
        tl.store(counts_ptr + 2, begin)
        tl.store(counts_ptr + 3, pages)
