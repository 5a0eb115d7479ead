"""Rows of pages on disk that are kept in RAM: never stale, within the budget, and gone when RAM is short (SPEC 10)."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pytest
import torch
from fast_helpers import SCALE, draw, feed, index_bytes, state_of
from faulty_disk import Faulty, Full
from kiv_fast import FastPool, Tuning
from kiv_fast.tiers import row_cache
from kiv_fast.tiers.row_cache import NOTED_BYTES, WAYS, RowCache, copy_rows
from kiv_fast.tiers.tiered import TieredArena
from kiv_reference.errors import KIVBudgetError, KIVStorageError

if TYPE_CHECKING:
    from pathlib import Path

    from kiv_fast.store import FastStore
    from kiv_reference import KIVConfig

ROW = 16
SET = WAYS * (ROW + NOTED_BYTES)
KEPT, NOT_KEPT = Tuning(row_steps=2, row_share=2), Tuning(row_share=1 << 40)
PROMPT, STEPS = 400, 40


def places(*numbers: int) -> Any:
    """Return offsets in a file of rows with these numbers."""
    return np.array(numbers, np.int64) * ROW


def rows_of(*numbers: int) -> Any:
    """Return the rows that lie there: each is full of its number."""
    return np.repeat(np.array(numbers, np.uint8)[:, None], ROW, axis=1)


def keep(cache: RowCache, *numbers: int) -> None:
    cache.keep(places(*numbers), rows_of(*numbers), np.arange(len(numbers)))


def held(cache: RowCache, *numbers: int) -> list[int]:
    """Return which of these rows are kept, all of them whole."""
    out = np.full((len(numbers), ROW), 255, np.uint8)
    missing = cache.take(places(*numbers), out, np.arange(len(numbers)))
    here = [number for at, number in enumerate(numbers) if at not in missing]
    assert (out[missing] == 255).all()
    assert (np.delete(out, missing, axis=0) == rows_of(*here)).all()
    return here


def test_what_was_kept_comes_back() -> None:
    cache = RowCache(ROW, 40 * SET)
    keep(cache, 7, 3, 90)
    assert held(cache, 1, 90, 3, 8, 7) == [90, 3, 7]
    cache.forget()
    assert held(cache, 7, 3, 90) == []


@pytest.mark.parametrize("sets", [1, 2, 3, 10, 101])
def test_it_takes_no_more_bytes_than_it_was_given(sets: int) -> None:
    cache = RowCache(ROW, sets * SET + SET - 1)
    taken = sum(part.nbytes for part in vars(cache).values() if isinstance(part, np.ndarray))
    assert (sets - 1) * SET <= taken <= sets * SET


def test_the_row_that_was_not_asked_for_longest_goes() -> None:
    cache = RowCache(ROW, SET)
    for number in range(WAYS):
        keep(cache, number)
    assert held(cache, 0, 2) == [0, 2]
    keep(cache, 20)
    keep(cache, 21)
    assert held(cache, *range(WAYS), 20, 21) == [0, 2, *range(4, WAYS), 20, 21]


def test_rows_of_one_call_for_one_slot() -> None:
    """Also the same row twice."""
    cache = RowCache(ROW, SET)
    keep(cache, 1, 2, 3, 3)
    assert held(cache, 1, 2, 3) == [3]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("threads", [1, 3])
def test_copies(compiled: bool, threads: int) -> None:
    """Of parts of rows, from some places to others; what is beside them stays."""
    generator = np.random.default_rng(1)
    source, out = generator.integers(0, 255, (900, 40), np.uint8), np.full((700, 50), 255, np.uint8)
    at, to = generator.integers(0, 900, 500), generator.permutation(700)[:500]
    expected = out.copy()
    expected[to, :24] = source[at, :24]
    with contextlib.nullcontext() if compiled else mock.patch.object(row_cache, "load", return_value=None):
        copy_rows(source[:, :24], at, out[:, :24], to, threads)
    assert (out == expected).all()


def test_shorter_rows() -> None:
    cache = RowCache(2 * ROW, 10 * SET)
    keep(cache, 5)
    assert held(cache, 4, 5) == [5]


def test_an_interrupt_leaves_no_half_row() -> None:
    cache = RowCache(ROW, SET)
    for number in range(WAYS):
        keep(cache, number)
    with mock.patch.object(row_cache, "copy_rows", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        keep(cache, 30)
    assert held(cache, *range(WAYS), 30) == list(range(1, WAYS))


def spilled(
    config: KIVConfig,
    folder: Path,
    tuning: Tuning = KEPT,
    io: Faulty | None = None,
    layers: int = 1,
    dtype: torch.dtype = torch.float32,
    **more: Any,
) -> FastPool:
    """Make a pool whose RAM has room for the index of these tokens and about half of the pages of a layer."""
    whole = FastPool(config).layer_store()
    feed(whole, draw(1, PROMPT + STEPS, dtype=dtype), [PROMPT, *[1] * STEPS])
    ram = layers * index_bytes(whole) + 7_000 * dtype.itemsize
    return FastPool(replace(config, ram_bytes=ram, spill_dir=folder, **more), io, tuning)


def steps(pool: FastPool, config: KIVConfig, stores: int = 1) -> None:
    """Feed prompts and steps, beside a pool with room for everything; at each step all stores in turn."""
    free = FastPool(config)
    data = [draw(seed, PROMPT + STEPS) for seed in range(stores)]
    mine, right = [[each.layer_store() for _ in data] for each in (pool, free)]
    start = 0
    for n in [PROMPT, *[1] * STEPS]:
        for part, store, twin in zip(data, mine, right, strict=True):
            now = [tensor[:, :, start : start + n] for tensor in part]
            assert torch.equal(feed(store, now, [n]), feed(twin, now, [n]))
            assert pool.memory().ram <= (pool.config.ram_bytes or 0)
            assert sum(each.memory().ram for each in mine) <= pool.memory().ram
        start += n
    for store in mine:
        store.reset()
    assert pool.memory() == (0, 0, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value_width", [5, 16, 24])
def test_rows_that_were_read_are_not_read_again(
    config: KIVConfig, tmp_path: Path, dtype: torch.dtype, value_width: int
) -> None:
    """Of one query that is asked again and again; but for some that share a slot."""
    key, value, query = draw(1, PROMPT, value_width=value_width, dtype=dtype)
    chunks, read = [PROMPT - 20, *[1] * 20], {}
    for tuning in (KEPT, NOT_KEPT):
        pool = spilled(config, tmp_path, tuning, dtype=dtype)
        store = pool.layer_store()
        feed(store, (key, value, query), chunks)
        counters, outputs, disk = pool.counters, [], [pool.counters.disk_bytes_read]
        gathered = counters.key_bytes_gathered
        for _ in range(4):
            outputs.append(store.attend(query[:, :, 7:8], scale=SCALE))
            disk.append(counters.disk_bytes_read)
        read[tuning] = [later - earlier for earlier, later in itertools.pairwise(disk)], outputs
        read[tuning][0].append(counters.key_bytes_gathered - gathered)
    (kept, *mine), (plain, *right) = read[KEPT], read[NOT_KEPT]
    assert torch.equal(torch.stack(*mine), torch.stack(*right))
    assert kept[-1] == plain[-1]  # what a step has to bring is the same
    assert plain[0] == plain[3] > 0
    assert kept[3] < plain[3] / 4


def test_every_step_is_right_and_within_the_budget(config: KIVConfig, tmp_path: Path) -> None:
    """Three layers in turn, of which not every one finds room for rows."""
    pool = spilled(config, tmp_path, layers=3)
    steps(pool, config, 3)
    assert pool.counters.disk_bytes_read > 0


def test_rows_of_a_store_that_was_interrupted(config: KIVConfig, tmp_path: Path) -> None:
    pool = spilled(config, tmp_path)
    store = pool.layer_store()
    feed(store, draw(3, PROMPT), [PROMPT - 20, *[1] * 20])
    assert pool.ledger.rows > 0
    pool.ledger.marked.add(state_of(store).cold.account)
    store.reset()
    assert (pool.memory(), pool.ledger.rows) == ((0, 0, 0), 0)


def fill(store: FastStore) -> None:
    """Append until something is refused."""
    while True:
        store.append(*draw(4, 40)[:2])


def test_rows_give_way_to_what_pages_need(config: KIVConfig, tmp_path: Path) -> None:
    """The index of another layer takes more and more RAM: in the end neither pages nor rows have any."""
    pool = spilled(config, tmp_path)
    store, other = pool.layer_store(), pool.layer_store()
    data, chunks = draw(3, PROMPT), [PROMPT - 20, *[1] * 20]
    expected = feed(FastPool(config).layer_store(), data, chunks)
    assert torch.equal(feed(store, data, chunks), expected)
    assert pool.ledger.rows > 0
    assert store.memory().ram == pool.memory().ram
    with pytest.raises(KIVBudgetError):
        fill(other)
    assert pool.ledger.rows == 0
    assert torch.equal(store.attend(data[2][:, :, -1:], scale=SCALE), expected[:, :, -1:])
    assert pool.memory().ram <= (pool.config.ram_bytes or 0)


def test_a_place_in_the_file_that_is_used_again(config: KIVConfig, tmp_path: Path) -> None:
    pool, free = spilled(config, tmp_path), FastPool(config)
    store, twin = pool.layer_store(), free.layer_store()
    fork = None
    for seed, length in ((1, PROMPT), (2, 90), (3, 40), (4, 120)):
        data = draw(seed, PROMPT)
        chunks = [PROMPT - 5, *[1] * 5]
        assert torch.equal(feed(store, data, chunks), feed(twin, data, chunks))
        if fork is None:
            fork, other = store.fork(), twin.fork()
            assert torch.equal(feed(fork, draw(9, 30), [29, 1]), feed(other, draw(9, 30), [29, 1]))
            fork.reset()
        for each in (store, twin):
            each.crop(length)
    assert pool.ledger.rows > 0


def test_what_the_disk_did_not_give_is_not_kept(config: KIVConfig, tmp_path: Path) -> None:
    io = Faulty("read")
    pool = spilled(config, tmp_path, io=io)
    store, twin = pool.layer_store(), FastPool(config).layer_store()
    data, failed = draw(1, PROMPT + STEPS), 0
    for start, n in ((0, PROMPT), *((PROMPT + step, 1) for step in range(STEPS))):
        key, value, query = (part[:, :, start : start + n] for part in data)
        for each in (store, twin):
            each.append(key, value)
        io.at = io.calls["read"] + 2
        try:
            output = store.attend(query, scale=SCALE)
        except KIVStorageError:
            failed += 1
            output = store.attend(query, scale=SCALE)
        assert torch.equal(output, twin.attend(query, scale=SCALE))
    assert failed > 3


def test_a_full_disk_leaves_pages_the_ram_of_rows(config: KIVConfig, tmp_path: Path) -> None:
    io = Full()
    pool = spilled(config, tmp_path, io=io)
    store, twin = pool.layer_store(), FastPool(config).layer_store()
    data = draw(1, PROMPT + STEPS)
    for each in (store, twin):
        feed(each, [part[:, :, :PROMPT] for part in data], [PROMPT - 20, *[1] * 20])
    assert pool.ledger.rows > 0
    io.full, before = True, store.tokens()
    for step in range(PROMPT, PROMPT + STEPS):
        key, value, query = (part[:, :, step : step + 1] for part in data)
        try:
            store.append(key, value)
        except KIVStorageError:
            break
        twin.append(key, value)
        assert torch.equal(store.attend(query, scale=SCALE), twin.attend(query, scale=SCALE))
    assert store.tokens().cold_disk == before.cold_disk
    assert store.tokens().cold_ram > before.cold_ram
    assert pool.ledger.rows == 0


def test_reservations_that_were_used_up_are_forgotten(config: KIVConfig, tmp_path: Path) -> None:
    store = spilled(config, tmp_path).layer_store()
    feed(store, draw(1, PROMPT), [PROMPT - 80, *[1] * 80])
    arena = state_of(store).cold.arena
    assert isinstance(arena, TieredArena)
    assert len(arena._reservations) <= 1


@pytest.mark.parametrize("more", [{"disk_bytes": 1 << 30}, {"retrieve_tokens": None}])
def test_where_no_rows_are_kept(config: KIVConfig, tmp_path: Path, more: dict[str, Any]) -> None:
    """Under a limit of the disk, since pages would go there to make room; and where every key is read."""
    pool = spilled(config, tmp_path, **more)
    store = pool.layer_store()
    feed(store, draw(1, PROMPT), [PROMPT - 20, *[1] * 20])
    assert store.tokens().cold_disk > 0
    assert pool.ledger.rows == 0
