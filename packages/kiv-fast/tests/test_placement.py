"""Where bytes live never changes a result (SPEC 10.1), and every byte comes back."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from fast_helpers import SCALE, draw, feed, index_bytes, state_of
from kiv_fast import FastPool
from kiv_reference.errors import KIVBudgetError

if TYPE_CHECKING:
    from pathlib import Path

    from kiv_reference import KIVConfig

CHUNKS = [90, 1, 1, 30, 1, 1, 1, 1, 50, *[1] * 24]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("prefill", ["exact", "retrieve"])
def test_every_budget_gives_the_same_bits(config: KIVConfig, prefill: str, dtype: torch.dtype, tmp_path: Path) -> None:
    config = replace(config, prefill=prefill, query_block_tokens=8, exact_suffix_tokens=4)
    data = draw(0, sum(CHUNKS), dtype=dtype)
    pool = FastPool(config)
    whole = pool.layer_store()
    expected = feed(whole, data, CHUNKS)
    ram, least = pool.memory().ram, index_bytes(whole)
    pages = ram - least
    for share in (least, least + 1000, least + pages // 5, least + pages // 2, 2 * ram):
        small = FastPool(replace(config, ram_bytes=share, spill_dir=tmp_path))
        store = small.layer_store()
        assert torch.equal(feed(store, data, CHUNKS), expected)
        held, parts = small.memory(), store.tokens()
        assert held.ram <= share
        assert (parts.cold_disk > 0) == (share < ram)
        assert parts.cold_ram + parts.cold_disk == pages // (2 * 2 * 16 * dtype.itemsize)
        store.reset()
        assert small.memory() == (0, 0, 0)
    assert list(tmp_path.iterdir()) == [], "scratch files have no name"
    refusing = FastPool(replace(config, ram_bytes=least - 1, spill_dir=tmp_path)).layer_store()
    with pytest.raises(KIVBudgetError, match=f"ram_bytes={least - 1}"):
        feed(refusing, data, CHUNKS)


def test_forks_and_rows_share_pages(config: KIVConfig) -> None:
    """What they do not share is in RAM their sampled queries."""
    pool = FastPool(config)
    store = pool.layer_store()
    feed(store, draw(2, 200), [200])
    before, sampled = pool.memory().ram, state_of(store).held.bytes.ram
    assert sampled > 0
    store.repeat_interleave(3)
    fork = store.fork()
    store.reorder(torch.tensor([2, 0, 0]))
    assert pool.memory().ram == before + 5 * sampled
    assert fork.memory().ram == 3 * before
    store.reset()
    assert pool.memory().ram == before + 2 * sampled
    fork.reset()
    assert pool.memory() == (0, 0, 0)


def test_a_store_that_is_dropped_gives_its_bytes_back(config: KIVConfig) -> None:
    pool = FastPool(config)
    store = pool.layer_store()
    feed(store, draw(2, 100), [100])
    del store
    assert pool.memory() == (0, 0, 0)


def test_budgets_hold_for_all_layers_together(config: KIVConfig, tmp_path: Path) -> None:
    data = draw(4, 120)
    alone = FastPool(config)
    store = alone.layer_store()
    feed(store, data, [120])
    need = alone.memory()
    ram = need.ram + index_bytes(store)
    pool = FastPool(replace(config, ram_bytes=ram, disk_bytes=0, spill_dir=tmp_path))
    first, second = pool.layer_store(), pool.layer_store()
    expected = feed(first, data, [120])
    held = pool.memory()
    with pytest.raises(KIVBudgetError, match="disk_bytes=0"):
        second.append(*data[:2])
    assert pool.memory() == held
    assert second.length == 0
    assert torch.equal(first.attend(data[2], scale=SCALE), expected)


@pytest.mark.parametrize("device", [0, 5_000])
def test_the_device_budget_is_hard(config: KIVConfig, device: int) -> None:
    pool = FastPool(replace(config, device_bytes=device))
    with pytest.raises(KIVBudgetError, match="device_bytes"):
        pool.layer_store().append(*draw(0, 400)[:2])
    assert pool.memory() == (0, 0, 0)


def test_pages_of_one_layer_give_way_to_the_index_of_another(config: KIVConfig, tmp_path: Path) -> None:
    """Layers that are filled one after the other: the first has taken all RAM for its pages when the second comes."""
    key, value, query = draw(2, 400)

    def play(pool: FastPool) -> list[Any]:
        outputs = []
        for store in (pool.layer_store(), pool.layer_store()):
            for part in range(0, 400, 40):
                store.append(key[:, :, part : part + 40], value[:, :, part : part + 40])
            outputs.append((store, store.attend(query[:, :, -40:], scale=SCALE)))
        return outputs

    whole = FastPool(config)
    expected = play(whole)
    room = 2 * index_bytes(expected[0][0]) + 1_000
    pool = FastPool(replace(config, ram_bytes=room, spill_dir=tmp_path))
    for (_, got), (_, right) in zip(play(pool), expected, strict=True):
        assert torch.equal(got, right)
    assert pool.memory().ram <= room


def test_pages_that_came_first_are_on_disk(config: KIVConfig, tmp_path: Path) -> None:
    data = draw(2, 300)
    whole = FastPool(config).layer_store()
    feed(whole, data, [300])
    store = FastPool(replace(config, ram_bytes=index_bytes(whole) + 8_000, spill_dir=tmp_path)).layer_store()
    pages, on_disk = state_of(whole).rows[0].pages, 0
    for start in range(0, 300, 20):
        feed(store, [part[:, :, start : start + 20] for part in data], [20])
        arena, pages = state_of(store).cold.arena, state_of(store).rows[0].pages
        on_disk = arena.pages_on_disk(pages)
        assert arena.pages_on_disk(pages[:on_disk]) == on_disk
    assert 0 < on_disk < len(pages)


@pytest.mark.parametrize("width", [3, 5, 16])
@pytest.mark.parametrize("retrieve_tokens", [None, 7])
def test_where_the_callers_memory_begins_changes_no_bit(
    config: KIVConfig, width: int, retrieve_tokens: int | None
) -> None:
    """Products of short rows round otherwise where they begin elsewhere."""
    config = replace(config, retrieve_tokens=retrieve_tokens)
    key, value, query = draw(7, 200, heads=1, width=width, value_width=3)

    def moved(tensor: torch.Tensor, by: int) -> torch.Tensor:
        room = torch.empty(tensor.numel() + by)
        return room[by:].view(tensor.shape).copy_(tensor)

    outputs = []
    for by in (0, 1, 5):
        store = FastPool(config).layer_store()
        parts, start = [], 0
        for n in (1, 90, 1, 9, 99):
            here = slice(start, start + n)
            store.append(moved(key[:, :, here], by), moved(value[:, :, here], by))
            parts.append(store.attend(moved(query[:, :, here], by), scale=SCALE))
            start += n
        outputs.append(torch.cat(parts, dim=2))
    assert all(torch.equal(output, outputs[0]) for output in outputs[1:])
