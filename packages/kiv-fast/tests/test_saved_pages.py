"""Restored pages are read when something of them is needed, once, and never trusted unread (SPEC 9.8)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from fast_helpers import SCALE, draw, feed, index_bytes, state_of
from kiv_fast import FastPool
from kiv_reference.errors import KIVBudgetError, KIVCorruptError
from saved_pages import saved

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kiv_fast.ops import OpsName
    from kiv_fast.store import FastStore
    from kiv_reference import KIVConfig

LENGTH, MORE = 130, 6
EXACT: dict[str, Any] = {"retrieve_tokens": None}
BOUND: dict[str, Any] = {"max_missed_mass": 0.05}
TIERED: dict[str, Any] = {"ram_bytes": "1MiB", "disk_bytes": 0}
"""Nothing can be spilled, so what is read comes from where it was saved."""

CACHED: dict[str, Any] = {"ram_bytes": "16MiB"}
"""Rows that were read are kept."""


def filled(config: KIVConfig, data: Sequence[torch.Tensor], ops: OpsName = "auto") -> FastStore:
    store = FastPool(config, ops=ops).layer_store()
    feed(store, data, [LENGTH])
    return store


def step(store: FastStore, data: Sequence[torch.Tensor], at: int, n: int = 1) -> torch.Tensor:
    key, value, query = (part[:, :, at : at + n] for part in data)
    store.append(key, value)
    return store.attend(query, scale=SCALE)


@pytest.mark.parametrize("ops", ["torch", "cpu"])
@pytest.mark.parametrize("block_tokens", [1, 2, 4])
@pytest.mark.parametrize("changes", [{}, EXACT, BOUND, TIERED, CACHED, {**EXACT, **TIERED}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_are_those_of_the_first_store(
    config: KIVConfig, ops: OpsName, block_tokens: int, changes: dict[str, Any], dtype: torch.dtype
) -> None:
    data = draw(1, LENGTH + MORE, batch=2, value_width=8, dtype=dtype)
    config = replace(config, **changes)
    store = filled(replace(config, ram_bytes=None, disk_bytes=None), data, ops)
    snapshot, pages = saved(store, block_tokens)
    twin = FastPool(config, ops=ops).layer_store()
    twin.restore(snapshot)
    assert not pages.reads
    for at in range(LENGTH, LENGTH + MORE - 3):
        assert torch.equal(step(store, data, at), step(twin, data, at))
    assert torch.equal(step(store, data, LENGTH + 3, 3), step(twin, data, LENGTH + 3, 3))
    for one in (store, twin):
        one.crop(60)  # pages are hot again, others are cold that were not read
    assert torch.equal(step(store, data, 60, 5), step(twin, data, 60, 5))


@pytest.mark.parametrize("ops", ["torch", "cpu"])
def test_a_step_reads_no_more_than_the_blocks_it_chose_from_and_no_block_twice(config: KIVConfig, ops: OpsName) -> None:
    data = draw(2, LENGTH + 1)
    snapshot, pages = saved(filled(config, data, ops))
    store = FastPool(config, ops=ops).layer_store()
    store.restore(snapshot)
    key, value, query = (part[:, :, LENGTH:] for part in data)
    store.append(key, value)
    store.attend(query, scale=SCALE)
    (block,) = store.report.blocks
    asked = {False: block.candidate_positions, True: block.selected_positions}
    for values, positions in asked.items():
        most = sum(len({(int(at) - config.sink_tokens) // 2 for at in head if at >= 0}) for head in positions[0])
        read = [number for kind, blocks in pages.reads for number in blocks if kind == values]
        assert len(read) == len(set(read)) == most
    nbytes = sum(len(blocks) * 2 * 16 * 4 for _, blocks in pages.reads)
    assert store._pool.counters.saved_bytes_read == nbytes
    before = len(pages.reads)
    store.attend(query, scale=SCALE)
    assert len(pages.reads) == before


def test_what_was_read_whole_costs_no_look_any_more(config: KIVConfig) -> None:
    data = draw(3, LENGTH + 2)
    snapshot, _ = saved(filled(config, data))
    store = FastPool(replace(config, **EXACT)).layer_store()
    store.restore(snapshot)
    step(store, data, LENGTH)
    assert not state_of(store).cold.arena.absent


@pytest.mark.parametrize("ops", ["torch", "cpu"])
@pytest.mark.parametrize("changes", [{}, EXACT, TIERED], ids=str)
def test_a_block_that_is_not_what_was_saved_is_an_error_until_it_is(
    config: KIVConfig, ops: OpsName, changes: dict[str, Any]
) -> None:
    data = draw(4, LENGTH + 1)
    whole = filled(config, data, ops)
    snapshot, pages = saved(whole)
    config = replace(config, **changes)
    store, right = FastPool(config, ops=ops).layer_store(), FastPool(config, ops=ops).layer_store()
    for one in (store, right):
        one.restore(snapshot)
    expected = step(right, data, LENGTH)
    pages.broken = set(range(len(pages) * 4))
    key, value, query = (part[:, :, LENGTH:] for part in data)
    store.append(key, value)
    for _ in range(2):
        with pytest.raises(KIVCorruptError):
            store.attend(query, scale=SCALE)
    pages.broken.clear()
    assert torch.equal(store.attend(query, scale=SCALE), expected)


@pytest.mark.parametrize("changes", [{}, TIERED], ids=str)
def test_pages_that_come_later_may_have_the_ids_of_restored_ones(config: KIVConfig, changes: dict[str, Any]) -> None:
    data = draw(5, LENGTH + 40)
    config = replace(config, **changes)
    snapshot, pages = saved(filled(replace(config, ram_bytes=None, disk_bytes=None), data))
    store, right = (FastPool(config).layer_store() for _ in range(2))
    store.restore(snapshot)
    store.crop(40)
    pages.broken = set(range(40, len(pages) * 4))
    other = draw(6, LENGTH + 40)
    for one in (store, right):
        if one is right:
            feed(one, data, [LENGTH])
            one.crop(40)
        one.append(*(part[:, :, 40:100] for part in other[:2]))  # an attend of all would leave nothing to be read
    assert torch.equal(step(store, other, 100), step(right, other, 100))


def test_without_an_index_it_is_made_of_the_pages(config: KIVConfig) -> None:
    data = draw(7, LENGTH + 1)
    store = filled(config, data)
    snapshot, pages = saved(store, indexed=False)
    twin = FastPool(config).layer_store()
    twin.restore(snapshot)
    assert {kind for kind, _ in pages.reads} == {False, True}
    assert torch.equal(step(store, data, LENGTH), step(twin, data, LENGTH))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("channels", lambda part: part.add(8)),
        ("channels", lambda part: part.sub(9)),
        ("channels", lambda part: part.flip(2) if part.ndim > 2 else part),
        ("channels", lambda part: part.long()),
        ("codes", lambda part: part[:, :1]),
        ("base", lambda part: part.double()),
        ("error", lambda part: None),
    ],
)
def test_an_index_that_memory_could_not_be_read_by_is_refused(config: KIVConfig, name: str, change: Any) -> None:
    data = draw(8, LENGTH, width=8)
    snapshot, pages = saved(filled(config, data))
    assert pages._index is not None
    pages._index = {**pages._index, name: change(pages._index[name])} if change(torch.ones(1, 2)) is not None else {
        key: part for key, part in pages._index.items() if key != name
    }  # fmt: skip
    pool = FastPool(config)
    with pytest.raises(KIVCorruptError, match=name if name != "channels" else "channels"):
        pool.layer_store().restore(snapshot)
    assert sum(pool.memory()) == 0


def test_an_index_with_other_than_numbers_is_made_anew(config: KIVConfig) -> None:
    data = draw(9, LENGTH + 1)
    store = filled(config, data)
    snapshot, pages = saved(store)
    assert pages._index is not None
    pages._index["base"].fill_(torch.nan)
    twin = FastPool(config).layer_store()
    twin.restore(snapshot)
    assert torch.equal(step(store, data, LENGTH), step(twin, data, LENGTH))


def test_saved_pages_take_no_room_under_a_budget(config: KIVConfig) -> None:
    """But their index does, which stays in RAM for the bound."""
    data = draw(10, LENGTH + 1)
    store = filled(config, data)
    snapshot, _ = saved(store)
    needed = index_bytes(store)
    pool = FastPool(replace(config, ram_bytes=needed, disk_bytes=0))
    twin = pool.layer_store()
    twin.restore(snapshot)
    assert pool.memory().disk == twin.memory().disk == 0
    assert pool.memory().ram == needed
    assert twin.tokens().cold_disk == len(snapshot.cold) * config.page_tokens
    twin.reset()
    assert sum(pool.memory()) == 0
    small = FastPool(replace(config, ram_bytes=needed - 1, disk_bytes=0))
    with pytest.raises(KIVBudgetError):
        small.layer_store().restore(snapshot)
    assert sum(small.memory()) == 0


def test_a_step_under_a_budget_keeps_rows_of_saved_pages(config: KIVConfig) -> None:
    data = draw(11, LENGTH + 1)
    snapshot, pages = saved(filled(config, data))
    twin = FastPool(replace(config, **CACHED)).layer_store()
    twin.restore(snapshot)
    step(twin, data, LENGTH)
    first, counts = pages.blocks_read, list[int]()
    for _ in range(6):  # of rows that displace each other in one call the last is kept
        before = pages.blocks_read
        twin.attend(data[2][:, :, LENGTH:], scale=SCALE)
        counts.append(pages.blocks_read - before)
    assert counts[0] < first // 2
    assert counts[-1] == 0


@pytest.mark.parametrize("changes", [{}, TIERED], ids=str)
def test_a_snapshot_of_a_restored_store_reads_what_is_missing(config: KIVConfig, changes: dict[str, Any]) -> None:
    data = draw(12, LENGTH + 1)
    store = filled(config, data)
    snapshot, _ = saved(store)
    twin = FastPool(replace(config, **changes)).layer_store()
    twin.restore(snapshot)
    again, _ = saved(twin)
    third = FastPool(config).layer_store()
    third.restore(again)
    assert torch.equal(step(store, data, LENGTH), step(third, data, LENGTH))


def test_forks_and_copies_of_restored_sequences_share_what_is_read(config: KIVConfig) -> None:
    data = draw(13, LENGTH + 1, batch=2)
    snapshot, pages = saved(filled(config, data))
    store = FastPool(config).layer_store()
    store.restore(snapshot)
    store.repeat_interleave(2)
    other = store.fork()
    twice = [part[:, :, LENGTH:].repeat_interleave(2, dim=0) for part in data]
    answers = [step(one, twice, 0) for one in (store, other)]
    assert torch.equal(*answers)
    read = [(kind, number) for kind, blocks in pages.reads for number in blocks]
    assert len(read) == len(set(read))
