"""Places where a fault once went unseen: the last part of something, the second of two, what a copy must have.

The reference says what is right. In float64 the two agree to 1e-10, where an error of one page or row does not.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from fast_helpers import SCALE, assert_close, draw
from kiv_fast import FastPool, Tuning
from kiv_reference import KIVConfig, ReferencePool

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDE = torch.float64


class Twins:
    """A store of kiv-fast and one of the reference that get the same calls."""

    def __init__(self, config: KIVConfig, tuning: Tuning | None = None) -> None:
        self.stores = FastPool(config, tuning=tuning).layer_store(), ReferencePool(config).layer_store()

    def append(self, data: Sequence[torch.Tensor], first: int, stop: int) -> None:
        for store in self.stores:
            store.append(*(part[:, :, first:stop] for part in data[:2]))
        self.query = data[2][:, :, first:stop]

    def crop(self, length: int) -> None:
        for store in self.stores:
            store.crop(length)

    def fork(self) -> Twins:
        twin = copy.copy(self)
        twin.stores = self.stores[0].fork(), self.stores[1].fork()
        return twin

    def agree(self) -> None:
        """Attend in both; the same tokens were retrieved, and the answers are the same."""
        fast, right = (store.attend(self.query, scale=SCALE) for store in self.stores)
        told, true = (store.report.blocks for store in self.stores)
        for mine, other in zip(told, true, strict=True):
            assert torch.equal(mine.candidate_positions, other.candidate_positions)
            assert torch.equal(mine.selected_positions, other.selected_positions)
        assert_close(fast, right, equal_nan=True)

    def step(self, data: Sequence[torch.Tensor], first: int, stop: int) -> None:
        self.append(data, first, stop)
        self.agree()


@pytest.mark.parametrize("pages", [6, 7, 8, 9, 513])
def test_every_page_of_a_long_append_is_indexed(config: KIVConfig, pages: int) -> None:
    """513 pages: one more than the chunks that a pool has unless it is told otherwise."""
    twins = Twins(config, tuning=None if pages > 256 else Tuning(index_tokens=16))
    length = config.sink_tokens + config.hot_tokens + pages * config.page_tokens
    data = draw(1, length + 1, dtype=WIDE)
    data[0][:, :, length - config.hot_tokens - 2] = 9 * data[2][:, ::2, length]  # in the last cold page
    twins.append(data, 0, length)
    twins.step(data, length, length + 1)
    assert bool((twins.stores[0].report.blocks[0].selected_positions == length - config.hot_tokens - 2).any())


@pytest.mark.parametrize(("tile", "length"), [(16, 190), (16, 203), (8192, 8192 + 59)])
def test_exact_attention_reaches_the_last_tile(config: KIVConfig, tile: int, length: int) -> None:
    tuning = None if tile == 8192 else Tuning(tile_tokens=tile)
    store = FastPool(replace(config, retrieve_tokens=None), tuning=tuning).layer_store()
    key, value, query = draw(2, length + 1, heads=1, width=4, value_width=4, dtype=WIDE)
    store.append(key[:, :, :length], value[:, :, :length])
    store.append(key[:, :, length:], value[:, :, length:])
    right = torch.nn.functional.scaled_dot_product_attention(
        query[:, :, length:], key, value, scale=SCALE, enable_gqa=True
    )
    assert_close(store.attend(query[:, :, length:], scale=SCALE), right)


def test_a_fork_writes_pages_of_its_own(config: KIVConfig) -> None:
    for length in (150, 152, 154):
        data, other = draw(6, 200, dtype=WIDE), draw(7, 200, dtype=WIDE)
        twins = Twins(config)
        twins.step(data, 0, length)
        fork = twins.fork()
        fork.append([100 * part for part in other], length, length + 30)
        fork.agree()
        twins.agree()
        twins.step(data, length, length + 1)


def test_a_fork_knows_of_infinite_values(config: KIVConfig) -> None:
    for chunk in (60, 1):
        data = draw(8, 60 + chunk, dtype=WIDE)
        data[1][:, :, 57] = torch.inf
        twins = Twins(config)
        twins.append(data, 0, 60)
        if chunk == 1:
            twins.agree()
            twins.append(data, 60, 61)
        fork = twins.fork()
        fork.agree()
        twins.agree()


def test_a_crop_forgets_what_was_behind_it(config: KIVConfig) -> None:
    """Far larger pages: if one of them still counts, every answer shows it."""
    data = draw(9, 200, dtype=WIDE)
    data[1][:, :, 100:] *= 1000
    for length in range(90, 118):
        twins = Twins(config)
        twins.step(data, 0, 200)
        twins.crop(length)
        twins.step([part[:, :, :length].flip(2) for part in data], 0, 1)
