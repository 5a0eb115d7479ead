from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
import torch
from kiv_reference import KIVConfig, LayerStore, ReferencePool, StorePool
from kiv_reference.errors import KIVBudgetError, KIVShapeError, KIVUsageError
from kiv_reference.store import ReferenceStore

if TYPE_CHECKING:
    from collections.abc import Sequence

B, H, G, D, DV = 2, 2, 3, 8, 6
SCALE = D**-0.5


@pytest.fixture
def config() -> KIVConfig:
    return KIVConfig(
        hot_tokens=6, sink_tokens=2, page_tokens=4, index_channels=3, candidate_tokens=12, retrieve_tokens=5
    )


def tokens(length: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    key = torch.randn(B, H, length, D, generator=generator)
    value = torch.randn(B, H, length, DV, generator=generator)
    query = torch.randn(B, H * G, length, D, generator=generator)
    return key.double(), value.double(), query.double()  # right answers agree to 1e-10 on any processor


def near(left: torch.Tensor, right: torch.Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)


def feed(store: ReferenceStore, data: Sequence[torch.Tensor], chunks: Sequence[int]) -> torch.Tensor:
    """Append and attend chunk by chunk; all outputs."""
    key, value, query = data
    outputs, start = [], store.length
    for n in chunks:
        stop = start + n
        store.append(key[:, :, start:stop], value[:, :, start:stop])
        outputs.append(store.attend(query[:, :, start:stop], scale=SCALE))
        start = stop
    return torch.cat(outputs, dim=2)


def test_the_classes_have_all_that_the_contract_names() -> None:
    for protocol, implementation in ((StorePool, ReferencePool), (LayerStore, ReferenceStore)):
        names = {name for name in vars(protocol) if not name.startswith("_")}
        assert len(names) >= 4
        assert names <= set(dir(implementation))


@pytest.mark.parametrize("chunks", [[60], [1] * 60, [7, 13, 1, 39]])
def test_exact_mode_is_full_attention(config: KIVConfig, chunks: list[int]) -> None:
    data = tokens(60)
    key, value, query = data
    store = ReferencePool(dataclasses.replace(config, retrieve_tokens=None)).layer_store()
    full = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=SCALE, enable_gqa=True
    )
    near(feed(store, data, chunks), full)
    assert store.tokens().cold_ram > 40


def test_a_budget_that_covers_everything_is_full_attention(config: KIVConfig) -> None:
    data = tokens(60)
    every = dataclasses.replace(config, candidate_tokens=80, retrieve_tokens=80)
    exact = dataclasses.replace(config, retrieve_tokens=None)
    left, right = (ReferencePool(c).layer_store() for c in (every, exact))
    near(feed(left, data, [1] * 60), feed(right, data, [1] * 60))


@pytest.mark.parametrize("prefill", ["retrieve", "window"])
def test_blocks_do_not_depend_on_the_chunks(config: KIVConfig, prefill: str) -> None:
    # Long enough for pages that become cold before, at and after the first sampled positions, 63 and 127.
    data = tokens(160)
    blocks = dataclasses.replace(config, prefill=prefill, query_block_tokens=4, exact_suffix_tokens=0)
    outputs = [feed(ReferencePool(blocks).layer_store(), data, chunks) for chunks in ([160], [16, 40, 64, 8, 32])]
    near(*outputs)


def test_the_suffix_is_exact(config: KIVConfig) -> None:
    data = tokens(64)
    exact = feed(ReferencePool(config).layer_store(), data, [64])
    lossy = dataclasses.replace(config, prefill="window", exact_suffix_tokens=9)
    output = feed(ReferencePool(lossy).layer_store(), data, [64])
    near(output[:, :, -9:], exact[:, :, -9:])
    assert not torch.allclose(output[:, :, -10], exact[:, :, -10])


@pytest.mark.parametrize("length", [31, 70, 128])
def test_crop_leaves_what_the_first_tokens_alone_give(config: KIVConfig, length: int) -> None:
    data, other = tokens(150), tokens(150, seed=1)
    store = ReferencePool(config).layer_store()
    feed(store, data, [140, 1])
    store.crop(length)
    fresh = ReferencePool(config).layer_store()
    feed(fresh, data, [length])
    assert store.memory() == fresh.memory()
    assert torch.equal(feed(store, other, [1] * 10), feed(fresh, other, [1] * 10))


def test_rows_move_with_their_tokens(config: KIVConfig) -> None:
    data = tokens(40)
    store = ReferencePool(config).layer_store()
    feed(store, data, [40])
    store.repeat_interleave(2)
    store.select(torch.tensor([3, 0]))
    swapped = ReferencePool(config).layer_store()
    feed(swapped, tuple(part[[1, 0]] for part in data), [40])
    more = tokens(41, seed=2)
    assert torch.equal(feed(store, more, [1]), feed(swapped, more, [1]))


def test_a_fork_lives_its_own_life(config: KIVConfig) -> None:
    data, other = tokens(50), tokens(50, seed=3)
    store = ReferencePool(config).layer_store()
    feed(store, data, [40])
    fork = store.fork()
    feed(fork, other, [10])
    alone = ReferencePool(config).layer_store()
    feed(alone, data, [40])
    assert torch.equal(feed(store, data, [1] * 10), feed(alone, data, [1] * 10))


def test_inference_mode_may_come_and_go(config: KIVConfig) -> None:
    data, more = tokens(40), tokens(41, seed=2)
    plain = ReferencePool(config).layer_store()
    feed(plain, data, [39, 1])
    store = ReferencePool(config).layer_store()
    with torch.inference_mode():
        feed(store, data, [39, 1])  # the second append leaves room for the next
    assert torch.equal(feed(store, more, [1]), feed(plain, more, [1]))


def test_attend_needs_the_tokens_just_appended(config: KIVConfig) -> None:
    key, value, query = tokens(8)
    store = ReferencePool(config).layer_store()
    with pytest.raises(KIVUsageError, match="append"):
        store.attend(query, scale=SCALE)
    store.append(key, value)
    with pytest.raises(KIVUsageError, match="TQ = 3"):
        store.attend(query[:, :, :3], scale=SCALE)
    store.crop(8)
    with pytest.raises(KIVUsageError, match="crop"):
        store.attend(query, scale=SCALE)


def test_other_shapes_and_dtypes_are_refused(config: KIVConfig) -> None:
    key, value, query = tokens(8)
    store = ReferencePool(config).layer_store()
    store.append(key, value)
    for bad in (key[:1], key[:, :1], key.half(), key[..., :4], key[0]):
        with pytest.raises(KIVShapeError):
            store.append(bad, value)
    with pytest.raises(KIVShapeError, match="valid"):
        store.append(key, value, torch.ones(B, 7, dtype=torch.bool))
    with pytest.raises(KIVShapeError, match="query"):
        store.attend(query[:, :5], scale=SCALE)
    assert store.length == 8


def test_budgets_are_hard_and_shared_between_layers(config: KIVConfig) -> None:
    key, value, _ = tokens(40)
    free = ReferencePool(config)
    store = free.layer_store()
    store.append(key, value)
    need = free.memory()
    during = (40 * B * H * (D + DV)) * key.itemsize + 40 * B  # the call sees everything as hot
    assert need.device < during
    exact_fit = dataclasses.replace(config, device_bytes=during, ram_bytes=need.ram)
    pool = ReferencePool(exact_fit)
    first, second = pool.layer_store(), pool.layer_store()
    first.append(key, value)
    with pytest.raises(KIVBudgetError, match="device_bytes"):
        second.append(key, value)
    with pytest.raises(KIVBudgetError, match="ram_bytes"):
        ReferencePool(dataclasses.replace(config, ram_bytes=need.ram - 1)).layer_store().append(key, value)


def test_only_what_every_step_looks_at_is_on_the_device(config: KIVConfig) -> None:
    """The error radii of pages, which only a bound asks for, take RAM (SPEC 10.2)."""
    config = dataclasses.replace(config, hot_tokens=4, sink_tokens=2, page_tokens=2, index_channels=3)
    store = ReferencePool(config).layer_store()
    store.append(*tokens(40)[:2])
    heads, number, pages = B * H, 8, 17
    page = 3 * (2 + 8 + 2 * number) + (D + DV) * number  # codes, channels, centres and steps; means
    assert store.memory().device == 6 * heads * (D + DV) * number + 40 * B + heads * pages * page
    assert store.memory().ram == heads * (2 * pages * (D + DV) + pages * D) * number


def test_a_closed_pool_says_so(config: KIVConfig) -> None:
    pool = ReferencePool(config)
    store = pool.layer_store()
    pool.close()
    assert pool.memory() == (0, 0, 0)
    with pytest.raises(KIVUsageError, match="closed"):
        store.append(*tokens(4)[:2])
