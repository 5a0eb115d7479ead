"""Rows of cold pages that a device keeps: they change no number, go and come as they should, and give way."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from fast_helpers import SCALE, draw, state_of
from kiv_fast import FastPool
from kiv_fast.device.kept import WAYS, aside_bytes, sets_for
from kiv_fast.memory.ledger import Ledger
from kiv_fast.tuning import Tuning
from kiv_reference.errors import KIVBudgetError
from simulated_device import DEVICE

pytest.importorskip("triton")

import simulated_launch
from simulated_launch import step

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kiv_fast.store import FastStore
    from kiv_reference import KIVConfig

PROMPT = 62
FEW, MANY = 0.5, 20.0
"""Steps whose rows are kept: fewer than a step reads, and all of them."""


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A device that reads host memory by itself."""
    with simulated_launch.device(monkeypatch):
        yield


def begun(config: KIVConfig, data: Sequence[torch.Tensor], steps: float = 2.0) -> FastStore:
    """Return a store on the device that has read the prompt."""
    tuning = Tuning(device_row_steps=steps, tile_tokens=8)  # so that a step takes more than the prompt
    store = FastPool(config, ops="triton", tuning=tuning).layer_store()
    step(store, data, 0, PROMPT)
    return store


def pool_of(store: FastStore) -> FastPool:
    """Return the pool of a store."""
    pool: Any = store._pool  # pyright: ignore[reportPrivateUsage]
    return pool


def aside_of(store: FastStore) -> int:
    """Return the bytes of the buffers of rows that are to be kept."""
    buffers = pool_of(store).aside._buffers.values()  # pyright: ignore[reportPrivateUsage]
    return sum(buffer.nbytes for buffer in buffers)


def steps(store: FastStore, data: Sequence[torch.Tensor], start: int, n: int) -> torch.Tensor:
    """Take steps; their outputs."""
    return torch.cat([step(store, data, at, at + 1).cpu() for at in range(start, start + n)], dim=2)


class LRU:
    """A head's cache as it is to be: in each set, rows and the steps in which they were last asked for."""

    def __init__(self, sets: int) -> None:
        self._sets = [([-1] * WAYS, [0] * WAYS) for _ in range(sets)]
        self._now = 0

    def fill(self, rows: list[int]) -> None:
        """Put rows where they belong, whatever is there."""
        for row in rows:
            self._sets[row % len(self._sets)][0][row // len(self._sets) % WAYS] = row

    def step(self, rows: list[int]) -> int:
        """Ask for rows, and keep those that are missed instead of the oldest, but of none of this step; count hits."""
        hits, self._now = 0, self._now + 1
        for at, (names, asked) in enumerate(self._sets):
            mine = [row for row in rows if row % len(self._sets) == at]
            missed = [row for row in mine if row not in names]
            hits += len(mine) - len(missed)
            for row in set(mine) - set(missed):
                asked[names.index(row)] = self._now
            oldest = sorted(range(WAYS), key=asked.__getitem__)
            for row, way in zip(missed, [way for way in oldest if asked[way] < self._now], strict=False):
                names[way], asked[way] = row, self._now
        return hits


@pytest.mark.parametrize("kept", [FEW, 2.0])
def test_each_set_keeps_what_was_asked_for_last(config: KIVConfig, kept: float) -> None:
    config = replace(config, page_tokens=16)  # none becomes cold in these steps
    data = draw(0, PROMPT + 6)
    store = begun(config, data, kept)
    state = state_of(store)
    sets = sets_for(state.shape, config, pool_of(store).tuning, None)
    assert sets is not None
    cold = state.pages * config.page_tokens
    models = [[LRU(n), LRU(n)] for n in sets]  # of two heads
    for n, caches in zip(sets, models, strict=True):
        for cache in caches:
            cache.fill(list(range(max(0, cold - n * WAYS), cold)))
    for at in range(PROMPT, PROMPT + 6):
        step(store, data, at, at + 1)
        (block,), (trace,) = store.report.blocks, store._traces or []  # pyright: ignore[reportPrivateUsage]
        found: Any = trace.rows[0].found
        expected = 0
        for head in range(2):
            # In the order in which they were read; the ids of pages count up from 0.
            keys = found.at.cpu()[head, : None if bool(block.widened[0, head].cpu()) else found.count]
            values = found.at.cpu()[head][found.selected.cpu()[head].long()]
            expected += 64 * sum(models[i][head].step(rows.tolist()) for i, rows in enumerate((keys, values)))
        assert block.kept_bytes == expected
    assert state.pages * config.page_tokens == cold


def life(config: KIVConfig, kept: float) -> tuple[list[torch.Tensor], dict[str, int]]:
    """Take a store through what befalls one; outputs, and what was counted."""
    config = replace(config, page_tokens=8)
    data, other = (draw(seed, PROMPT + 20, batch=2, heads=1) for seed in (1, 2))
    store = begun(config, data, kept)
    outputs = [steps(store, data, PROMPT, 5)]  # a page becomes cold
    fork = store.fork()
    outputs += [steps(store, data, PROMPT + 5, 1), steps(fork, other, PROMPT + 5, 1)]
    store.select(torch.tensor([1, 1, 0]))
    three = [torch.cat([part, part[:1]]) for part in data]
    outputs.append(steps(store, three, PROMPT + 6, 1))
    store.crop(40)  # other pages get the ids of those that go
    three = [torch.cat([part, part[:1]]) for part in other]
    outputs += [step(store, three, 40, 56).cpu(), steps(store, three, 56, 2)]
    return outputs, pool_of(store).device_row_hits()


def test_they_change_no_number(config: KIVConfig) -> None:
    right, nothing = life(config, 0.0)
    assert set(nothing.values()) == {0}
    shares = dict[float, float]()
    for kept in (1.0, MANY):
        outputs, counts = life(config, kept)
        assert all(map(torch.equal, outputs, right)), kept
        shares[kept] = counts["keys kept"] / counts["keys read"]
    assert 0 < shares[1.0] < shares[MANY] < 1


def test_nothing_is_kept_of_pages_that_go(config: KIVConfig) -> None:
    store = begun(config, draw(9, PROMPT))
    kept = state_of(store).cold.kept
    assert kept is not None
    for table, rows in (kept.kept.keys, kept.kept.values):
        assert (table.cpu()[:, : rows.shape[1]] >= 0).all()
    store.crop(40)
    for table, rows in (kept.kept.keys, kept.kept.values):
        assert (table.cpu()[:, : rows.shape[1]] == -1).all()


def test_a_step_that_attends_everything_reads_what_is_kept(config: KIVConfig) -> None:
    config = replace(config, candidate_tokens=500)
    data = draw(3, PROMPT + 2)
    store, right = begun(config, data), begun(config, data, 0.0)
    assert torch.equal(steps(store, data, PROMPT, 2), steps(right, data, PROMPT, 2))
    (block,) = store.report.blocks
    cold = state_of(store).pages * config.page_tokens
    last = -(-2 * (config.retrieve_tokens or 0) // WAYS) * WAYS
    assert block.mode == "exact"
    assert block.kept_bytes == 2 * 64 * (cold + min(cold, last))
    assert right.report.kept_bytes == 0


def test_memory_counts_them(config: KIVConfig) -> None:
    data = draw(4, PROMPT + 1)
    store, without = begun(config, data), begun(config, data, 0.0)
    pools = [pool_of(store), pool_of(without)]
    kept = pools[0].device_row_bytes
    sets = sets_for(state_of(store).shape, config, Tuning(), None)
    assert sets is not None
    # Rows of 16 numbers, 68 bytes noted of a set, a count of steps, four counts of rows.
    assert kept == 2 * (4 * 16 * WAYS * sum(sets) + 68 * sum(sets) + 8 + 32)
    assert store.memory().device - without.memory().device == kept == pools[0].device_breakdown()["rows of cold pages"]
    assert (pools[1].device_row_bytes, pools[0].device_row_hits()["keys read"]) == (0, 0)
    step(store, data, PROMPT, PROMPT + 1)
    assert aside_of(store) == pools[0].aside.nbytes
    counts = pools[0].device_row_hits()
    assert counts["keys read"] * 64 == store.report.key_bytes
    assert counts["values read"] * 64 == store.report.value_bytes
    assert (counts["keys kept"] + counts["values kept"]) * 64 == store.report.kept_bytes
    read = store.report.key_bytes + store.report.value_bytes
    assert counts["bytes over the bus"] == read - store.report.kept_bytes > 0
    store.reset()
    assert pools[0].memory().device == 0


def needed(config: KIVConfig, data: Sequence[torch.Tensor], monkeypatch: pytest.MonkeyPatch, n: int) -> int:
    """Return the most device bytes that a store takes which keeps no rows, for the prompt and n steps."""
    real, most = Ledger.take, 0

    def take(self: Ledger, more: tuple[int, int, int]) -> None:
        nonlocal most
        real(self, more)
        most = max(most, self.used.device)

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "take", take)
        steps(begun(config, data, 0.0), data, PROMPT, n)
    return most


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_they_take_what_is_left(config: KIVConfig, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    data = draw(5, PROMPT + 2)
    right = begun(config, data)
    shape = state_of(right).shape
    wanted = pool_of(right).device_row_bytes + aside_bytes(shape, config)
    budget = replace(config, device_bytes=needed(config, data, monkeypatch, 2) + int(share * wanted))
    store = begun(budget, data)
    for at in (PROMPT, PROMPT + 1):
        assert torch.equal(steps(store, data, at, 1), steps(right, data, at, 1))
        assert store.memory().device <= (budget.device_bytes or 0)
        assert aside_of(store) in (0, pool_of(store).aside.nbytes)
    assert (pool_of(store).device_row_bytes == pool_of(right).device_row_bytes) == (share == 1)
    assert pool_of(store).device_row_bytes == 0 or share > 0


def test_a_store_leaves_their_shares_to_others(config: KIVConfig) -> None:
    data, kept = draw(8, PROMPT), list[int]()
    for stores in (1, 3):
        pool = FastPool(replace(config, device_bytes=110_000), tuning=Tuning(device_row_steps=MANY), ops="triton")
        first, *_others = [pool.layer_store() for _ in range(stores)]
        step(first, data, 0, PROMPT)
        kept.append(pool.device_row_bytes)
    assert 0 < 2 * kept[1] < kept[0]


def test_they_give_way_to_tokens(config: KIVConfig) -> None:
    data = draw(6, PROMPT + 5)
    store = begun(replace(config, device_bytes=200_000), data)
    steps(store, data, PROMPT, 1)
    wanted = pool_of(store).device_row_bytes
    assert wanted > 0
    pool = pool_of(store)
    other = pool.layer_store()
    key, value, _ = (part[:, :, :50].to(DEVICE) for part in data)
    with suppress(KIVBudgetError):  # until nothing is left
        while other.length < 10_000:
            other.append(key, value)
    assert 50 < other.length < 10_000
    assert pool_of(store).device_row_bytes == 0
    assert pool.memory().device <= 200_000
    other.reset()
    right = begun(config, data, 0.0)
    assert torch.equal(steps(store, data, PROMPT + 1, 4), steps(right, data, PROMPT, 5)[:, :, 1:])
    assert pool_of(store).device_row_bytes == wanted  # again, since a page has become cold


def test_a_step_that_broke_off_leaves_nothing_half_done(config: KIVConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    data = draw(7, PROMPT + 3)
    store, right = begun(config, data), begun(config, data, 0.0)
    for each in (store, right):
        steps(each, data, PROMPT, 1)
    key, value, query = (part[:, :, PROMPT + 1 : PROMPT + 2].to(DEVICE) for part in data)
    for each in (store, right):
        each.append(key, value)

    def interrupted(kernel: Any, *more: Any, **options: Any) -> None:
        if kernel.__name__ == "combine":
            raise KeyboardInterrupt
        simulated_launch.launch(kernel, *more, **options)

    with monkeypatch.context() as patched:
        patched.setattr(simulated_launch.decode, "launch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.attend(query, scale=SCALE)
    outputs = [each.attend(query, scale=SCALE).cpu() for each in (store, right)]
    assert torch.equal(*outputs)
    assert store.report.kept_bytes == 0
    assert torch.equal(steps(store, data, PROMPT + 2, 1), steps(right, data, PROMPT + 2, 1))
