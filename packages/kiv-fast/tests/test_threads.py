"""Forks of one store, each in a thread of its own, give what they give one after the other, bit for bit."""

from __future__ import annotations

import gc
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from fast_helpers import SCALE, draw, index_bytes, state_of
from kiv_fast import FastPool

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from kiv_fast.store import FastStore
    from kiv_reference import KIVConfig

THREADS = 6
PROMPT, STEPS = 240, 16
ROOM_BYTES = 24 << 10  # beside summaries: what forks add, but not half of the prompt's pages


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads that take turns as often as Python lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def step(store: FastStore, data: Sequence[torch.Tensor], at: int) -> torch.Tensor:
    key, value, query = (part[:, :, at : at + 1] for part in data)
    store.append(key, value)
    return store.attend(query, scale=SCALE)


def work(store: FastStore, seed: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return a life of a fork: decode, crop, fork again, change the batch; all its answers."""
    data = draw(seed, STEPS)
    answers = [step(store, data, at) for at in range(STEPS // 2)]
    store.crop(PROMPT - seed)
    twin = store.fork()
    for at in range(STEPS // 2, STEPS):
        answers.append(step(twin, data, at))
        assert sum(twin.tokens()) == twin.length
        twin.memory()
    del twin
    store.reorder(torch.tensor([0]))
    answers += [step(store, data, at) for at in range(STEPS)]
    selected = [block.selected_positions for block in store.report.blocks]
    store.reset()
    return torch.cat(answers, dim=2), selected


def forks(config: KIVConfig) -> tuple[FastPool, FastStore, list[FastStore]]:
    pool = FastPool(config)
    store = pool.layer_store()
    key, value, query = draw(99, PROMPT)
    store.append(key, value)
    store.attend(query, scale=SCALE)
    return pool, store, [store.fork() for _ in range(THREADS)]


@pytest.mark.parametrize("disk", [False, True], ids=["RAM", "disk"])
@pytest.mark.parametrize(("retrieve_tokens", "prefill"), [(7, "exact"), (7, "retrieve"), (None, "exact")])
def test_forks_in_threads(
    config: KIVConfig, tmp_path: Path, disk: bool, retrieve_tokens: int | None, prefill: str, restless: None
) -> None:
    config = replace(config, retrieve_tokens=retrieve_tokens, prefill=prefill)
    pool, store, alone = forks(config)
    if disk:
        config = replace(config, ram_bytes=index_bytes(store) + ROOM_BYTES, spill_dir=tmp_path)
        pool, store, alone = forks(config)
        # Before any thread begins: whether pages are on disk must not depend on how the threads take turns.
        assert pool.memory().disk > ROOM_BYTES
    expected = [work(fork, seed) for seed, fork in enumerate(alone)]
    pool, store, together = forks(config)
    with ThreadPoolExecutor(THREADS) as threads:
        found = list(threads.map(work, together, range(THREADS)))
    for (output, selected), (right, right_selected) in zip(found, expected, strict=True):
        assert torch.equal(output, right)
        assert all(torch.equal(a, b) for a, b in zip(selected, right_selected, strict=True))
    assert (pool.counters.disk_bytes_read > 0) == disk
    store.reset()
    assert pool.memory() == (0, 0, 0)


def test_garbage_inside_a_call_is_released_after_it(config: KIVConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that dies in the middle of another's call, in the same thread, as collected cycles do."""
    pool, store, others = forks(config)
    write = state_of(store).cold.arena.write

    def collect(*args: Any) -> None:
        held = pool.ledger.used
        assert others
        others.clear()
        gc.collect()
        assert pool.ledger.used == held, "a dead store was released inside a call"
        write(*args)

    monkeypatch.setattr(state_of(store).cold.arena, "write", collect)
    key, value, query = draw(3, 4)
    store.append(key, value)
    store.attend(query, scale=SCALE)
    assert not others
    assert pool.memory() == store.memory()._replace(device=pool.memory().device)
    store.reset()
    assert pool.memory() == (0, 0, 0)


def test_a_dead_store_is_released_while_another_thread_is_in_a_call(
    config: KIVConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, store, others = forks(config)
    inside, go_on = threading.Event(), threading.Event()
    prepare = state_of(store).prepare

    def wait(tokens: int, padded: bool) -> None:
        inside.set()
        assert go_on.wait(20)
        prepare(tokens, padded)

    monkeypatch.setattr(store.state, "prepare", wait)
    data = draw(3, 1)
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(store.append, *data[:2])
        assert inside.wait(20)
        others.clear()
        gc.collect()
        go_on.set()
        call.result()
    store.reset()
    assert pool.memory() == (0, 0, 0)
