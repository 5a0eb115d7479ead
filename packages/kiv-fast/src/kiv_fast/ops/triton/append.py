"""New tokens into the hot window (SPEC 9.1), and whether they are numbers (SPEC 2.5)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _copy(new_ptr, window_ptr, odd_ptr, row, sequence_stride, head_stride, token_stride, at, capacity, bit: tl.constexpr, H: tl.constexpr,
          W: tl.constexpr, BW: tl.constexpr):
    """Copy one token of one head; note in `odd_ptr` if one of its numbers is not finite."""
    w = tl.arange(0, BW)
    x = tl.load(new_ptr + row // H * sequence_stride + row % H * head_stride + w, mask=w < W, other=0.0)
    tl.store(window_ptr + (row.to(tl.int64) * capacity + at) * W + w, x, mask=w < W)
    x = x.to(tl.float32)
    if tl.sum((x - x != 0.0).to(tl.int32), 0) > 0:
        tl.atomic_or(odd_ptr, bit)


@triton.jit
def append(key_ptr, value_ptr, hot_k, hot_v, odd_ptr, key_b, key_h, value_b, value_h, at, capacity, H: tl.constexpr,
           D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr):
    """Write one token of each sequence behind the others. Grid (B * H,).

    Key and value by their strides of sequences and heads; windows [B, H, capacity, D] and [B, H, capacity, DV], where
    it comes to `at`. Odd: bit 1 where a key is not finite, bit 2 where a value is not.
    """
    row = tl.program_id(0)
    _copy(key_ptr, hot_k, odd_ptr, row, key_b, key_h, 0, at, capacity, 1, H, D, BD)
    _copy(value_ptr, hot_v, odd_ptr, row, value_b, value_h, 0, at, capacity, 2, H, DV, BV)
