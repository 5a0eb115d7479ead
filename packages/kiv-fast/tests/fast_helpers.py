"""Data for the tests of the tiered implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kiv_fast.state import State
    from kiv_fast.store import FastStore
    from kiv_reference import LayerStore

SCALE = 0.25

CLOSE = {torch.float64: 1e-10, torch.float32: 1e-4}
"""How near right answers lie on any processor. In float32 the order of sums moves them by far less, by how much depends
on the processor: it is float64 that tells a wrong answer from a right one."""


def assert_close(output: torch.Tensor, expected: torch.Tensor, **kwargs: Any) -> None:
    """Check that two tensors are equal on any processor, relative to the numbers or to one."""
    close = CLOSE[expected.dtype]
    torch.testing.assert_close(output, expected, rtol=close, atol=close, **kwargs)


def draw(
    seed: int,
    length: int,
    batch: int = 1,
    heads: int = 2,
    width: int = 16,
    value_width: int = 16,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return random keys, values and queries, of two heads for each KV head."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, heads, length, width), (batch, heads, length, value_width), (batch, 2 * heads, length, width)
    key, value, query = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return key, value, query


def state_of(store: FastStore) -> State:
    """Return the state of a store that has tokens."""
    assert store.state is not None
    return store.state


def index_bytes(store: FastStore) -> int:
    """Return the RAM that the sampled queries of a store and the index of its pages take: they never leave it."""
    state = state_of(store)
    return state.held.bytes.ram + state.cold.memory(state.rows, state.reservation)[0].ram


def feed(store: LayerStore, data: Sequence[torch.Tensor], chunks: Sequence[int]) -> torch.Tensor:
    """Append and attend chunk by chunk, and return all outputs."""
    outputs, start = [], 0
    for n in chunks:
        key, value, query = (part[:, :, start : start + n] for part in data)
        store.append(key, value)
        outputs.append(store.attend(query, scale=SCALE))
        start += n
    return torch.cat(outputs, dim=2)
