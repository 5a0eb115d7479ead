"""Data for the tests of the tiered implementation."""

from __future__ import annotations

import torch

SCALE = 0.25

CLOSE = {torch.float64: 1e-10, torch.float32: 1e-4}
"""How near right answers lie on any processor. In float32 the order of sums moves them by far less, by how much depends
on the processor: it is float64 that tells a wrong answer from a right one."""


def assert_close(output, expected, **kwargs):
    """Equal on any processor, relative to the numbers or to one."""
    close = CLOSE[expected.dtype]
    torch.testing.assert_close(output, expected, rtol=close, atol=close, **kwargs)


def draw(seed, length, batch=1, heads=2, groups=2, width=16, value_width=16, dtype=torch.float32):  # noqa: PLR0913
    """Keys, values and queries."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, heads, length, width), (batch, heads, length, value_width), (batch, heads * groups, length, width)
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


def index_bytes(store):
    """RAM that the sampled queries of a store and the index of its pages take: they never leave it."""
    state = store.state
    return state.held.bytes.ram + state.cold.memory(state.rows, state.reservation)[0].ram


def feed(store, data, chunks):
    """Append and attend chunk by chunk; all outputs."""
    outputs, start = [], 0
    for n in chunks:
        key, value, query = (part[:, :, start : start + n] for part in data)
        store.append(key, value)
        outputs.append(store.attend(query, scale=SCALE))
        start += n
    return torch.cat(outputs, dim=2)
