"""The bound on missed mass where float64 itself loses what decides (SPEC 6.2)."""

import math
from typing import Any

import pytest
import torch
from kiv_fast import FastPool
from kiv_reference import KIVConfig

LARGE = 2.0**53
"""From here on float64 has no halves."""


def test_the_bound_holds_where_products_cancel() -> None:
    """The selected token's score of 1.5 is computed as 2, and that of the one left out, 1, as 0."""
    config = KIVConfig(
        hot_tokens=0, sink_tokens=0, page_tokens=2, candidate_tokens=2, retrieve_tokens=1, exact_suffix_tokens=0
    )
    store = FastPool(config).layer_store()
    far = [0.0, -1000.0, 0.0]
    key = torch.tensor([[1.0, 1.5, 1.0], [1.0, 1.0, 1.0], far, far, far], dtype=torch.float64)[None, None]
    query = torch.tensor([LARGE, 1.0, -LARGE], dtype=torch.float64).expand(1, 1, 5, 3)
    store.append(key[:, :, :4], key[:, :, :4])
    store.attend(query[:, :, :4], scale=1.0)
    store.append(key[:, :, 4:], key[:, :, 4:])
    store.attend(query[:, :, 4:], scale=1.0, bound=True)
    (block,) = store.report.blocks
    assert block.candidate_positions.tolist() == [[[0, 1]]]
    selected = int(block.selected_positions.item())
    scores = [1.5, 1.0]
    missed = math.exp(scores[1 - selected]) / (math.exp(scores[0]) + math.exp(scores[1]))
    assert block.missed_bound is not None
    assert block.missed_bound.item() >= missed


@pytest.mark.parametrize("ops", ["torch", "auto"])
def test_the_bound_holds_whatever_the_order_of_a_sum(ops: Any) -> None:
    """Two keys of a head have the same channels in another order: half is missed, however their logits are rounded."""
    config = KIVConfig(
        hot_tokens=0, sink_tokens=0, page_tokens=2, candidate_tokens=2, retrieve_tokens=1, exact_suffix_tokens=0
    )
    store = FastPool(config, ops=ops).layer_store()
    generator = torch.Generator().manual_seed(0)
    key = torch.zeros(1, 8, 5, 64)
    key[:, :, 2:, 63] = -1e3  # far below the two
    for head in range(8):
        channels = torch.randn(63, generator=generator)
        key[0, head, 0, :63] = channels
        key[0, head, 1, :63] = channels[torch.randperm(63, generator=generator)]
    query = torch.full((1, 8, 5, 64), 1e6)
    for part in (slice(0, 4), slice(4, 5)):
        store.append(key[:, :, part], key[:, :, part])
        store.attend(query[:, :, part], scale=1.0, bound=True)
    (block,) = store.report.blocks
    assert block.candidate_positions[..., :2].tolist() == [[[0, 1]] * 8]
    assert block.missed_bound is not None
    assert bool((block.missed_bound > 0.4999).all()), block.missed_bound


@pytest.mark.parametrize("ops", ["torch", "auto"])
def test_a_page_of_huge_keys_says_nothing_of_the_others(ops: Any) -> None:
    """Its logits are rounded by more than the others are below what is attended; they are as far below themselves."""
    config = KIVConfig(hot_tokens=0, sink_tokens=0, page_tokens=8, candidate_tokens=1, retrieve_tokens=1)
    store = FastPool(config, ops=ops).layer_store()
    key = torch.arange(1.0, 9.0)[:, None].expand(8, 8)
    key = torch.cat([key, 1e6 * key, torch.zeros(1, 8)])[None, None]
    for part in key.split([16, 1], dim=2):
        store.append(part, part)
        store.attend(-torch.ones(1, 1, part.shape[2], 8), scale=1e9, bound=True)
    bound = store.report.blocks[0].missed_bound
    assert bound is not None
    assert float(bound) < 1e-3
