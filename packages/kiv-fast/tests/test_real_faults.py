"""Places where a fault once went unseen: the last part of something, the second of two, what a copy must have.

The reference says what is right. In float64 the two agree to 1e-10, where an error of one page, span or row does not.
"""

from dataclasses import replace

import pytest
import torch
from fast_helpers import SCALE, assert_close, draw
from kiv_fast import FastPool, Tuning
from kiv_reference import ReferencePool
from kiv_reference.errors import KIVNonFiniteError

WIDE = torch.float64
SMALL = Tuning(least_chapter_pages=8, most_chapter_pages=32, look_pages=1, stagger_pages=1)


class LatePool(FastPool):
    """As on a device: whether what a step assumed holds is learnt when it is over."""

    def cold(self, shape, ordinal):
        cold = super().cold(shape, ordinal)
        cold.transfer.immediate = False
        return cold


class Twins:
    """A store of kiv-fast and one of the reference that get the same calls."""

    def __init__(self, config, pool=FastPool, tuning=None, stores=None):
        self.stores = stores or (pool(config, tuning=tuning).layer_store(), ReferencePool(config).layer_store())

    def append(self, data, first, stop):
        for store in self.stores:
            store.append(*(part[:, :, first:stop] for part in data[:2]))
        self.query = data[2][:, :, first:stop]

    def crop(self, length):
        for store in self.stores:
            store.crop(length)

    def fork(self):
        twin = Twins(None, stores=tuple(store.fork() for store in self.stores))
        twin.query = self.query
        return twin

    def agree(self):
        """Attend in both; the same pages and tokens were retrieved, and the answers are the same."""
        fast, right = (store.attend(self.query, scale=SCALE) for store in self.stores)
        told, true = (store.report.blocks for store in self.stores)
        for mine, other in zip(told, true, strict=True):
            assert torch.equal(mine.candidate_pages, other.candidate_pages)
            assert torch.equal(mine.selected_positions, other.selected_positions)
        assert_close(fast, right, equal_nan=True)

    def step(self, data, first, stop):
        self.append(data, first, stop)
        self.agree()


@pytest.mark.parametrize("pages", [1, 3, 4, 5, 257])
def test_every_page_of_a_long_append_is_summarised(config, pages):
    """257 pages: one more than the chunks that a pool has unless it is told otherwise."""
    twins = Twins(config, tuning=None if pages > 256 else Tuning(summary_chunk=4))
    length = config.sink_tokens + config.hot_tokens + pages * config.page_tokens
    data = draw(1, length + 1, dtype=WIDE)
    data[0][:, :, length - config.hot_tokens - 2] = 9 * data[2][:, ::2, length]  # in the last cold page
    twins.append(data, 0, length)
    twins.step(data, length, length + 1)
    assert bool((twins.stores[0].report.blocks[0].candidate_pages == pages - 1).any())


@pytest.mark.parametrize(("tile", "length"), [(16, 190), (16, 203), (8192, 8192 + 59)])
def test_exact_attention_reaches_the_last_tile(config, tile, length):
    tuning = None if tile == 8192 else Tuning(tile_tokens=tile)
    store = FastPool(replace(config, retrieve_tokens=None), tuning=tuning).layer_store()
    key, value, query = draw(2, length + 1, heads=1, width=4, value_width=4, dtype=WIDE)
    store.append(key[:, :, :length], value[:, :, :length])
    store.append(key[:, :, length:], value[:, :, length:])
    right = torch.nn.functional.scaled_dot_product_attention(
        query[:, :, length:], key, value, scale=SCALE, enable_gqa=True
    )
    assert_close(store.attend(query[:, :, length:], scale=SCALE), right)


def test_the_late_answer_of_every_sequence_is_read(config):
    """The first look is enough for the first sequence, whose pages are easily told apart, and not for the second."""
    key, value, query = draw(3, 420, batch=2)
    page = (torch.arange(420) - config.sink_tokens).div(config.page_tokens, rounding_mode="floor")
    easy = 4 * torch.nn.functional.one_hot(page.clamp(min=0) % 16, 16).float() * (1 + page.clamp(min=0)[:, None] / 100)
    key[0] = easy
    twins = Twins(config, LatePool, SMALL)
    twins.step((key, value, query), 0, 400)
    for token in range(400, 420):
        twins.step((key, value, query), token, token + 1)


@pytest.mark.parametrize("seed", [1, 2])
def test_every_touched_span_has_room(config, seed):
    """Candidates fill more than half of as many spans as they can, and touch another beside these."""
    config = replace(config, candidate_pages=5, span_pages=3)
    key, value, query = draw(seed, 209, groups=1)
    page = (torch.arange(209) - config.sink_tokens).div(config.page_tokens, rounding_mode="floor")
    # Of two spans two pages of three are candidates, and the last span, which has one page, is.
    for number in (0, 1, 9, 10, 48):
        key[:, :, page == number] = 2 * query[:, :, 208:]
    twins = Twins(config, LatePool, SMALL)
    twins.step((key, value, query), 0, 208)
    twins.step((key, value, query), 208, 209)
    assert twins.stores[0].state.rows[0].sizes.alike >= 49
    chosen = twins.stores[0].report.blocks[0].candidate_pages[0]
    assert all(sorted(row) == [0, 1, 9, 10, 48] for row in chosen.tolist())


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_a_token_that_is_refused_late_may_have_been_a_sink(config, tokens):
    config = replace(config, sink_tokens=6, prefill="retrieve")
    data = draw(5, 40, dtype=WIDE)
    twins = Twins(config, LatePool)
    twins.step(data, 0, tokens)
    fast = twins.stores[0]
    fast.append(torch.full_like(data[0][:, :, :1], torch.nan), data[1][:, :, :1])
    with pytest.raises(KIVNonFiniteError):
        fast.attend(data[2][:, :, :1], scale=SCALE)
    assert fast.length == tokens
    for token in range(tokens, 40):
        twins.step(data, token, token + 1)


def test_a_fork_writes_a_last_span_of_its_own(config):
    for length in (150, 154, 158, 162):  # the last span has one, two or three pages
        data, other = draw(6, 200, dtype=WIDE), draw(7, 200, dtype=WIDE)
        twins = Twins(config)
        twins.step(data, 0, length)
        fork = twins.fork()
        fork.append([100 * part for part in other], length, length + 30)
        fork.agree()
        twins.agree()
        twins.step(data, length, length + 1)


def test_a_fork_knows_of_infinite_values(config):
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


@pytest.mark.parametrize("span_pages", [2, 3, 4])
def test_a_crop_builds_its_last_span_anew(config, span_pages):
    """Far larger pages behind the crop: if the span still has one of them, every answer shows it."""
    config = replace(config, span_pages=span_pages)
    data = draw(9, 200, dtype=WIDE)
    data[1][:, :, 100:] *= 1000
    for length in range(90, 118):
        twins = Twins(config)
        twins.step(data, 0, 200)
        twins.crop(length)
        twins.step([part[:, :, :length].flip(2) for part in data], 0, 1)


def test_a_crop_forgets_which_sizes_there_were(config):
    """Sums less one huge term are not exact, and it matters that they are: the page weighs nothing, its span does."""
    config = replace(config, span_pages=6)
    data, other = draw(10, 200, groups=1, dtype=WIDE), draw(11, 80, groups=1, dtype=WIDE)
    key, wanted = other[0], other[2][:, :, 79:]
    across = (
        key[:, :, :1] - (key[:, :, :1] * wanted).sum(3, keepdim=True) / wanted.square().sum(3, keepdim=True) * wanted
    )
    for length in range(60, 72):
        twins = Twins(config)
        twins.step(data, 0, 200)
        twins.crop(length)
        first = config.sink_tokens + 20 * config.page_tokens - length  # of page 20, within `other`
        spoilt = [part.clone() for part in other]
        for token in range(first, first + config.page_tokens):  # a page whose spread alone makes it a candidate
            spoilt[0][:, :, token] = (-50 * wanted + (-1) ** token * 1000 * across)[:, :, 0]
        spoilt[1][:, :, first : first + config.page_tokens] *= 1e15
        twins.append(spoilt, 0, 79)
        twins.step(spoilt, 79, 80)
        assert bool((twins.stores[0].report.blocks[0].candidate_pages == 20).any())
