"""Data for the tests of the tiered implementation."""

from __future__ import annotations

import torch

SCALE = 0.25


def draw(seed, length, batch=1, heads=2, groups=2, width=16, value_width=16, dtype=torch.float32):
    """Keys, values and queries."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, heads, length, width), (batch, heads, length, value_width), (batch, heads * groups, length, width)
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


def summary_bytes(store):
    """RAM that the page summaries of a store take: they never leave it."""
    return sum(store.state.cold.row_bytes(row).ram for row in store.state.rows)


def feed(store, data, chunks):
    """Append and attend chunk by chunk; all outputs."""
    outputs, start = [], 0
    for n in chunks:
        key, value, query = (part[:, :, start : start + n] for part in data)
        store.append(key, value)
        outputs.append(store.attend(query, scale=SCALE))
        start += n
    return torch.cat(outputs, dim=2)
