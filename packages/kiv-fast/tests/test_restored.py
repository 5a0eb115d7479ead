"""What may happen to a restored store, or to the one that its pages come from: they stay right, or refuse by name."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import kiv_fast.tiers.saved
import pytest
import torch
from fast_helpers import SCALE, draw, feed, state_of
from kiv_fast import FastPool
from kiv_fast.cold import Cold
from kiv_fast.guard import CARRYING
from kiv_reference.errors import KIVBudgetError, KIVCorruptError
from saved_pages import saved

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kiv_fast.ops import OpsName
    from kiv_fast.store import FastStore
    from kiv_reference import KIVConfig

LENGTH = 130
TIERED: dict[str, Any] = {"ram_bytes": "1MiB", "disk_bytes": 0}
EVERYTHING = range(1 << 16)


def filled(config: KIVConfig, data: Sequence[torch.Tensor]) -> FastStore:
    store = FastPool(config).layer_store()
    feed(store, data, [LENGTH])
    return store


def step(store: FastStore, data: Sequence[torch.Tensor], at: int = LENGTH, n: int = 1) -> torch.Tensor:
    key, value, query = (part[:, :, at : at + n] for part in data)
    store.append(key, value)
    return store.attend(query, scale=SCALE)


@pytest.mark.parametrize("ops", ["torch", "cpu"])
@pytest.mark.parametrize("changes", [{}, TIERED], ids=str)
@pytest.mark.parametrize("prefill", ["exact", "retrieve"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.float32])
def test_padding_and_long_calls(
    config: KIVConfig, ops: OpsName, changes: dict[str, Any], prefill: Any, dtype: torch.dtype
) -> None:
    """Queries at invalid positions, pages with invalid tokens, and steps that ask for a bound."""
    if ops == "cpu" and dtype == torch.float64:
        pytest.skip("compiled operations are for narrower numbers")
    data = draw(1, LENGTH + 60, batch=2, value_width=8, dtype=dtype)
    valid = torch.ones(2, LENGTH, dtype=torch.bool)
    valid[0, :37], valid[1, 60:63] = False, False
    config = replace(config, prefill=prefill, query_block_tokens=8, max_missed_mass=0.05)
    store = FastPool(config, ops=ops).layer_store()
    store.append(data[0][:, :, :LENGTH], data[1][:, :, :LENGTH], valid)
    store.attend(data[2][:, :, :LENGTH], scale=SCALE)
    snapshot, pages = saved(store)
    twin = FastPool(replace(config, **changes), ops=ops).layer_store()
    twin.restore(snapshot)
    assert not pages.reads
    for at, n in ((LENGTH, 1), (LENGTH + 1, 40), (LENGTH + 41, 1)):
        assert torch.equal(step(store, data, at, n), step(twin, data, at, n))
    assert pages.reads
    rows = torch.tensor([1, 1, 0])
    more = [part.index_select(0, rows) for part in data]
    for one in (store, twin):
        one.select(rows)
    assert torch.equal(step(store, more, LENGTH + 42, 3), step(twin.fork(), more, LENGTH + 42, 3))


@pytest.mark.parametrize("changes", [{}, TIERED], ids=str)
def test_a_crop_that_cannot_read_leaves_the_store_and_its_forks_as_they_were(
    config: KIVConfig, changes: dict[str, Any]
) -> None:
    data = draw(2, LENGTH + 1)
    whole = filled(config, data)
    snapshot, pages = saved(whole)
    store = FastPool(replace(config, **changes)).layer_store()
    store.restore(snapshot)
    fork, before = store.fork(), store.memory()
    pages.broken.update(EVERYTHING)
    for _ in range(2):
        with pytest.raises(KIVCorruptError):
            store.crop(60)
    assert (store.length, store.memory()) == (LENGTH, before)
    pages.broken.clear()
    assert torch.equal(step(fork, data), step(whole.fork(), data))
    for one in (whole, store):
        one.crop(60)
    assert torch.equal(step(store, data, 60), step(whole, data, 60))


@pytest.mark.parametrize("changes", [{}, TIERED], ids=str)
def test_a_restore_that_cannot_read_holds_nothing_and_can_be_made_again(
    config: KIVConfig, changes: dict[str, Any]
) -> None:
    data = draw(3, LENGTH + 1)
    whole = filled(config, data)
    snapshot, pages = saved(whole, indexed=False)
    pool = FastPool(replace(config, **changes))
    store, other = pool.layer_store(), pool.layer_store()
    feed(other, data, [20])
    held = pool.memory()
    pages.broken.add(2 * len(pages))
    with pytest.raises(KIVCorruptError):
        store.restore(snapshot)
    assert (pool.memory(), store.length) == (held, 0)
    pages.broken.clear()
    store.restore(snapshot)
    assert torch.equal(step(store, data), step(whole, data))


@pytest.mark.parametrize("name", ["hold", "keep_rows"])
@pytest.mark.parametrize("lasting", [False, True])
def test_a_restore_that_is_refused_memory_holds_nothing(
    config: KIVConfig, monkeypatch: pytest.MonkeyPatch, name: str, lasting: bool
) -> None:
    data = draw(9, LENGTH + 1, batch=2)
    whole, calls = filled(config, data), list[int]()
    snapshot = saved(whole)[0] if lasting else whole.snapshot()
    assert snapshot is not None
    right, last = getattr(Cold, name), 2 if name == "hold" else 1

    def refusing(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == last:
            raise MemoryError("no memory")
        return right(*args)

    pool = FastPool(config)
    store = pool.layer_store()
    with monkeypatch.context() as patch:
        patch.setattr(Cold, name, refusing)
        with pytest.raises(MemoryError, match="no memory"):
            store.restore(snapshot)
    assert len(calls) == last
    assert sum(pool.memory()) == 0
    store.restore(snapshot)
    assert torch.equal(step(store, data), step(whole, data))


@pytest.mark.parametrize("lasting", [False, True])
def test_what_is_cold_before_an_attend_has_its_room_at_once(config: KIVConfig, lasting: bool) -> None:
    data = draw(4, LENGTH + 1)
    store = FastPool(config).layer_store()
    store.append(*(part[:, :, :LENGTH] for part in data[:2]))
    snapshot = saved(store)[0] if lasting else store.snapshot()
    assert snapshot is not None
    assert snapshot.pages.shape[1] < config.cold_pages(LENGTH)
    needed = store.memory().ram
    small = FastPool(replace(config, ram_bytes=needed - 1, disk_bytes=0))
    with pytest.raises(KIVBudgetError):
        small.layer_store().restore(snapshot)
    assert sum(small.memory()) == 0
    pool = FastPool(replace(config, ram_bytes=needed + 4096, disk_bytes=0))
    twin = pool.layer_store()
    twin.restore(snapshot)
    assert twin.memory().ram == needed
    assert torch.equal(step(twin, data), step(store, data))
    assert twin.memory().ram == store.memory().ram
    twin.reset()
    assert sum(pool.memory()) == 0


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("changes", [{}, TIERED], ids=str)
def test_pages_that_no_sequence_has_are_let_go(config: KIVConfig, changes: dict[str, Any], indexed: bool) -> None:
    data = draw(5, LENGTH + 1, batch=2)
    store = filled(config, data)
    snapshot, _ = saved(store, indexed=indexed)
    second = replace(snapshot, pages=snapshot.pages[1:], key=snapshot.key[1:], value=snapshot.value[1:],
                     sampled=snapshot.sampled[1:])  # fmt: skip
    twin = FastPool(replace(config, **changes)).layer_store()
    twin.restore(second)
    store.select(torch.tensor([1]))
    one = [part[1:] for part in data]
    assert torch.equal(step(twin, one), step(store, one))
    if not changes:
        assert twin.memory() == store.memory()


def test_the_store_of_a_snapshot_lives_as_long_as_it(config: KIVConfig) -> None:
    data = draw(6, LENGTH + 1)
    store = filled(config, data)
    expected, pool = step(store.fork(), data), store._pool
    snapshot = store.snapshot()
    assert snapshot is not None
    del store
    gc.collect()
    twin = FastPool(config).layer_store()
    twin.restore(snapshot)
    assert torch.equal(step(twin, data), expected)
    del snapshot
    gc.collect()
    assert pool.ledger.used == (0, 0, 0)


def test_pages_are_read_where_no_fork_is_at_work(config: KIVConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forks in other threads move pages; two pools that take pages of each other do not wait for each other."""
    store = filled(config, draw(7, LENGTH))
    snapshot, cold, held = store.snapshot(), state_of(store).cold, list[tuple[bool, bool]]()
    assert snapshot is not None
    assert cold.index is not None

    def watched(read: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            guard = store._pool.guard
            held.append((guard.inside and guard.lock._is_owned(), CARRYING._is_owned()))  # pyright: ignore[reportAttributeAccessIssue]
            return read(*args)

        return call

    for where, name in ((cold.arena, "parts"), (cold.index, "of")):
        monkeypatch.setattr(where, name, watched(getattr(where, name)))
    snapshot.read_pages(True, 0, 1)
    FastPool(config).layer_store().restore(snapshot)
    assert held[0] == (True, False)
    assert len(held) >= 4
    assert set(held[1:]) == {(True, True)}
    assert not store._pool.guard.inside


def test_few_blocks_are_held_beside_their_rows(config: KIVConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    data = draw(8, LENGTH + 1)
    whole = filled(config, data)
    snapshot, pages = saved(whole)
    monkeypatch.setattr(kiv_fast.tiers.saved, "AT_ONCE", 3 * 2 * 16 * 4 + 1)
    store = FastPool(replace(config, **TIERED)).layer_store()
    store.restore(snapshot)
    assert torch.equal(step(store, data), step(whole, data))
    assert max(len(blocks) for _, blocks in pages.reads) == 3
