"""The compiled operations against those in PyTorch, on blocks of every shape, with the instructions of this machine."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from fast_helpers import state_of
from hypothesis import given, settings
from hypothesis import strategies as st
from kiv_fast import FastPool
from kiv_fast.call import view_of
from kiv_fast.ops import addresses, library
from kiv_fast.ops.arguments import Queries, Tile
from kiv_reference import KIVConfig
from ops_comparison import ROUNDING, check, ops_at, rows
from random_blocks import blocks
from torch.nn.functional import pad

if TYPE_CHECKING:
    from collections.abc import Generator

    from kiv_reference.config import Group
    from random_blocks import Block

compiled = pytest.mark.skipif(library.load() is None, reason="kiv-fast was built without a C compiler")
LEVELS = range(1 + (library.load() or SimpleNamespace(level=0)).level)


@contextmanager
def threads_of(count: int) -> Generator[None]:
    """Let torch, and with it the compiled operations, have `count` threads, for blocks of every size."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(addresses, "WORTH_THREADS", 0)
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)


@compiled
@pytest.mark.parametrize("level", LEVELS)
@settings(deadline=None, derandomize=True, max_examples=60)
@given(block=blocks(), in_place=st.booleans(), threads=st.integers(1, 4))
def test_operations(level: int, block: Block, in_place: bool, threads: int) -> None:
    with threads_of(threads):
        check(level, in_place, block)


@compiled
@pytest.mark.parametrize("level", LEVELS)
@settings(deadline=None, derandomize=True, max_examples=40)
@given(block=blocks(), threads=st.integers(2, 4))
def test_threads_change_no_number(level: int, block: Block, threads: int) -> None:
    _store, view, queries, candidates, selected = block
    ops, (keys, values) = ops_at(level), rows(view, True)
    finite, (heads, groups, asked, _) = view.finite and view.row.finite >= view.index.pages, queries.query.shape
    results = []
    for count in (1, threads):
        with threads_of(count):
            scanned = ops.estimate(view.index, queries, min(2 * candidates, view.tokens))
            found = ops.select(scanned, keys, candidates, selected)
            out = torch.empty(heads * groups, asked, view.cold.shape.value_width, dtype=view.cold.shape.dtype)
            masses = ops.attend(queries, view.always, finite, (scanned, found, values), True, out)
        results.append((found.candidates, found.scores, found.chosen, out, masses))
    for one, many in zip(*results, strict=True):
        torch.testing.assert_close(one, many, rtol=0, atol=0, equal_nan=True)


@compiled
@pytest.mark.parametrize("level", LEVELS)
@settings(deadline=None, derandomize=True, max_examples=40)
@given(block=blocks(whole=True), in_place=st.booleans())
def test_of_equal_scores_the_first_are_taken(level: int, block: Block, in_place: bool) -> None:
    check(level, in_place, block, exact=True)


def block_of(key: torch.Tensor, query: torch.Tensor, size: int, scale: float, candidates: int) -> Block:
    """Return a block whose last query asks about cold pages of `size` tokens with these keys [1, H, T, 8]."""
    heads, tokens = key.shape[1:3]
    sizes: dict[str, Any] = {"hot_tokens": 0, "sink_tokens": 0, "page_tokens": size, "index_channels": 8}
    config = KIVConfig(**sizes, candidate_tokens=1, retrieve_tokens=1, prefill="window")
    store = FastPool(config, ops="torch").layer_store()
    store.append(key, key)
    store.attend(query, scale=1.0)
    asked = Queries(query[0, :, -1:].unflatten(0, (heads, -1)), tokens - 1, None, scale, None, None)
    return store, view_of(state_of(store), 0, tokens // size, tokens), asked, candidates, 5


@compiled
@pytest.mark.parametrize("level", LEVELS)
def test_a_sample_that_misleads(level: int) -> None:
    """The tokens that are looked at first are all better than the others, and fewer than are wanted."""
    generator = torch.Generator().manual_seed(1)
    key, query = torch.randn(1, 2, 64 * 40, 8, generator=generator), torch.rand(1, 4, 64 * 40, 8, generator=generator)
    key.view(1, 2, 40, 64, 8)[:, :, :, :16] += 3
    for candidates in (100, 500, 1200):
        check(level, True, block_of(key, query, 64, 0.3, candidates))


@compiled
@pytest.mark.parametrize("level", LEVELS)
def test_a_top_that_the_sample_does_not_have(level: int) -> None:
    """Many tokens that a member likes are listed at first; beside the one it likes best, it likes none."""
    generator = torch.Generator().manual_seed(1)
    key = 0.3 * torch.randn(1, 1, 64 * 40, 8, generator=generator)
    key[..., 1] = torch.where(torch.rand(64 * 40, generator=generator) < 0.25, 6.0, 0.0)
    key[0, 0, 64 * 20 + 50, 1] = 30.0
    query = torch.eye(8)[:2, None].expand(2, 64 * 40, 8)[None]
    check(level, True, block_of(key, query, 64, 1.0, 20))


@compiled
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_a_token_far_above_the_guessed_top_of_one_member(level: int, softcap: float | None) -> None:
    """The other member's many tokens are listed, and enough of them to be sure: it is among them all the same."""
    generator = torch.Generator().manual_seed(1)
    key, query = torch.zeros(1, 1, 64 * 40, 8), torch.zeros(1, 2, 64 * 40, 8)
    key[..., 1] = torch.randn(64 * 40, generator=generator)
    key[:, :, 64 * 7 + 40, 0] = 3e4
    query[:, 0, :, 0], query[:, 1, :, 1] = 1e5, 1.0
    _store, view, queries, candidates, selected = block_of(key, query, 64, 1.0, 100)
    ops = ops_at(level)
    scanned = ops.estimate(view.index, replace(queries, softcap=softcap), candidates)
    found = ops.select(scanned, rows(view, True)[0], candidates, selected)
    assert 64 * 7 + 40 in found.candidates[0].tolist()


@compiled
@pytest.mark.parametrize("level", LEVELS)
def test_a_page_far_below_a_wrong_estimate(level: int) -> None:
    """One token's estimate is 90 more than its score; beside that score another page's logit is not small."""
    key = torch.zeros(2, 16, 8)
    key[:, 1:9] = 16 * torch.eye(
        8
    )  # so that a step is 1, an estimate the middle of one, and of 0 in the second channel -1/2
    key[:, 1:, 1] = -16.0
    key[0, 0] = torch.tensor([8.0, 0.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0])
    key[1, 0] = torch.tensor([8.5, 0.0, 8.5, 8.5, 8.5, 7.5, 7.5, 7.5])
    check(level, True, block_of(key.view(1, 1, 32, 8), torch.ones(1, 1, 32, 8), 16, 30.0, 1))
    key[0, 9:], key[1, 0] = key[0, 0], key[1, 9]  # more such tokens than are selected, and nothing that is no candidate
    check(level, True, block_of(key.view(1, 1, 32, 8), torch.ones(1, 1, 32, 8), 16, 30.0, 32))


@compiled
@pytest.mark.parametrize("level", LEVELS)
def test_heads_that_use_other_channels(level: int) -> None:
    """The token that is read is so far above the others that these are weighed again, by the channels of their head."""
    key, query = pad(16 * torch.eye(8), (0, 0, 1, 7)).repeat(2, 1, 1), torch.ones(1, 1, 32, 8)
    key[:, 1:, 1] = key[1, 0, 1] = -16.0
    key[0, 0] = torch.tensor([8.0, 0.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0])
    both = [torch.cat([pad(part, (8, 0)), pad(part, (0, 8))], dim=1) for part in (key.view(1, 1, 32, 8), query)]
    check(level, True, block_of(both[0], both[1], 16, 8.0, 1))


@compiled
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("group", ["exp_sum", "max"])
def test_scores_that_are_no_numbers_are_taken_once(level: int, group: Group) -> None:
    """Scores beyond float32 are infinite, and their differences NaN: what is chosen are tokens all the same."""
    sizes: dict[str, Any] = {
        "hot_tokens": 0,
        "sink_tokens": 0,
        "page_tokens": 20,
        "candidate_tokens": 1,
        "retrieve_tokens": 1,
    }
    store = FastPool(KIVConfig(prefill="window", group=group, **sizes), ops="torch").layer_store()
    sign = torch.randn(1, 2, 201, 8, generator=torch.Generator().manual_seed(1)).sign()
    store.append(3e38 * sign, sign)
    store.attend(3e38 * sign, scale=1.0)
    view = view_of(state_of(store), 0, 10, 201)
    queries = Queries(3e38 * sign[0, :, None, -1:], 200, None, 1.0, None, None)
    for keys, _ in (rows(view, True), rows(view, False)):
        ops = ops_at(level)
        found = ops.select(ops.estimate(view.index, queries, 100), keys, 50, 30)
        for taken, most in ((found.candidates, 200), (found.chosen, 50)):
            assert bool((taken[:, 1:] > taken[:, :-1]).all())
            assert bool(((taken >= 0) & (taken < most)).all())


@compiled
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", list(ROUNDING))
def test_outputs_are_rounded_to_nearest(level: int, dtype: torch.dtype) -> None:
    """The mean of two values that weigh the same, from the smallest to the largest numbers."""
    generator = torch.Generator().manual_seed(1)
    most = 15 if dtype == torch.float16 else 100
    value = torch.randn(2, 4000, generator=generator) * 2.0 ** torch.randint(
        -most - 9, most, (4000,), generator=generator
    )
    value = value.to(dtype)
    tile = Tile(torch.ones(1, 1, 2, 3, dtype=dtype), value[None, None], 0, 0, 2, 0, None)
    ops, out = ops_at(level), torch.empty(1, 1, 4000, dtype=dtype)
    ops.attend(Queries(torch.zeros(1, 1, 1, 3), 1, None, 1.0, None, None), [tile], True, None, False, out)
    assert torch.equal(out[0, 0], value.float().mean(dim=0).to(dtype))
