"""What a step may cost (README): it reads the keys of its candidates and the rows that it selected, and holds what
`memory()` says.

Spies count the bytes that files and tensors really give; the counters of the pool are not asked.
"""

from __future__ import annotations

import gc
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest
from fast_helpers import SCALE, draw, index_bytes, state_of
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from kiv_fast import FastPool, Tuning
from kiv_fast.device.gather import Gather
from kiv_fast.tiers.file_io import FileIO
from kiv_fast.tiers.tiered import TieredArena
from kiv_reference import KIVConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import torch
    from kiv_fast.store import FastStore

CONFIG = KIVConfig(hot_tokens=8, sink_tokens=2, page_tokens=4, index_channels=6, candidate_tokens=20, retrieve_tokens=7)
TUNING = Tuning(chunk_bytes=4096)
WIDTH, ITEM = 16, 4
QUICK = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=cast("list[HealthCheck]", list(HealthCheck)),
    phases=(Phase.explicit, Phase.generate),  # an example is small enough as it is
)


class CountingIO(FileIO):
    """Counts the bytes that are read from files, and notes each read."""

    read_many = FileIO.read_each

    def __init__(self) -> None:
        self.reads = []

    def read(self, handle: int, buffer: memoryview, offset: int) -> int:
        count = super().read(handle, buffer, offset)
        self.reads.append(count)
        return count


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> dict[Any, int]:
    """Bytes gathered from each table in RAM, by its identity."""
    counts, rows = {}, Gather.rows

    def counting(self: Any, table: Any, at: Any) -> torch.Tensor:
        found = rows(self, table, at)
        counts[id(table)] = counts.get(id(table), 0) + found.nbytes
        return found

    monkeypatch.setattr(Gather, "rows", counting)
    return counts


def allowed(store: FastStore) -> tuple[int, int]:
    """Return bytes of the candidates' keys, and of the selected rows, of the last call."""
    (block,) = store.report.blocks
    assert block.mode == "retrieve"
    keys = int((block.candidate_positions >= 0).sum()) * WIDTH * ITEM
    return keys, int((block.selected_positions >= 0).sum()) * WIDTH * ITEM


def steps(store: FastStore, data: Sequence[torch.Tensor], prompt: int) -> Iterator[None]:
    """Fill a store, then yield after each append of a decode step, and after its attend."""
    store.append(*(part[:, :, :prompt] for part in data[:2]))
    store.attend(data[2][:, :, :prompt], scale=SCALE)
    for at in range(prompt, data[0].shape[2]):
        store.append(*(part[:, :, at : at + 1] for part in data[:2]))
        yield
        store.attend(data[2][:, :, at : at + 1], scale=SCALE)


@given(seed=st.integers(0, 999), prompt=st.integers(80, 300))
@QUICK
def ram_steps(gathered: dict[Any, int], seed: int, prompt: int) -> None:
    pool = FastPool(CONFIG, tuning=TUNING, ops="torch")  # the compiled ones read rows where they lie
    store = pool.layer_store()
    for _ in steps(store, draw(seed, prompt + 6), prompt):
        arena = state_of(store).cold.arena
        if gathered.get("open"):
            keys, values = allowed(store)
            assert gathered.get(id(arena._key), 0) <= keys
            assert gathered.get(id(arena._value), 0) <= values
        gathered.clear()
        gathered["open"] = True
    gathered.clear()


def test_a_step_gathers_candidates_and_selected_rows(gathered: dict[Any, int]) -> None:
    ram_steps(gathered)


@given(seed=st.integers(0, 999), prompt=st.integers(80, 300), ram=st.integers(2_000, 30_000))
@QUICK
def disk_steps(folder: Path, seed: int, prompt: int, ram: int) -> None:
    data = draw(seed, prompt + 6)
    io = CountingIO()
    base = (prompt + 6) // CONFIG.page_tokens * 400  # of samples, the index and tables, which never leave RAM
    pool = FastPool(replace(CONFIG, ram_bytes=base + ram, spill_dir=folder), io, TUNING)
    store = pool.layer_store()
    first = True
    for _ in steps(store, data, prompt):
        if not first:
            keys, values = allowed(store)
            assert sum(io.reads) <= keys + values
            assert all(count % (WIDTH * ITEM) == 0 for count in io.reads)
        first = False
        io.reads.clear()
        arena = state_of(store).cold.arena
        assert isinstance(arena, TieredArena)
        held = arena.resident * arena.page_bytes + index_bytes(store)
        assert held <= pool.memory().ram <= base + ram
    pool.close()


def test_a_step_reads_no_more_from_disk(tmp_path: Path) -> None:
    disk_steps(os.fspath(tmp_path))


CHUNK, CHUNKS, BLOCK = 32, 24, 16
"""Tokens of a chunk, chunks of a prompt, and queries that share a retrieval."""


def chunk_bytes(folder: str, told: bool) -> list[int]:
    """Read a prompt by retrieval, and return the bytes that each chunk read from disk."""
    data, io = draw(7, CHUNK * CHUNKS), CountingIO()
    config = replace(CONFIG, prefill="retrieve", query_block_tokens=BLOCK, exact_suffix_tokens=8, tail="none")
    ram = CHUNK * CHUNKS // CONFIG.page_tokens * 400  # as above: next to nothing for pages
    pool = FastPool(replace(config, ram_bytes=ram, spill_dir=folder), io, TUNING)
    store, found = pool.layer_store(), []
    for chunk in range(CHUNKS):
        key, value, query = (part[:, :, chunk * CHUNK : (chunk + 1) * CHUNK] for part in data)
        remaining = CHUNK * (CHUNKS - 1 - chunk) if told else None
        store.append(key, value)
        io.reads.clear()
        store.attend(query, scale=SCALE, remaining_prompt_tokens=remaining)
        found.append(sum(io.reads))
        assert found[-1] <= store.report.key_bytes + store.report.value_bytes
    pool.close()
    return found


def test_a_prefill_by_retrieval_reads_no_more_as_the_context_grows(tmp_path: Path) -> None:
    heads = 2
    assert CONFIG.retrieve_tokens is not None
    # Twice the candidates where it widens (SPEC 4.9).
    most = CHUNK // BLOCK * heads * (2 * CONFIG.candidate_tokens + CONFIG.retrieve_tokens) * WIDTH * ITEM
    *told, last = chunk_bytes(os.fspath(tmp_path), told=True)
    assert 0 < max(told) <= most
    assert last > 5 * most  # the end of the prompt attends to everything
    assert chunk_bytes(os.fspath(tmp_path), told=False)[-2] > 5 * most


@given(prompt=st.integers(60, 200), forks=st.integers(0, 2), cut=st.integers(0, 60))
@QUICK
def live_tensors(prompt: int, forks: int, cut: int) -> None:
    """Check that tensors on the device that a pool's states refer to take no more than `memory()` says."""
    pool = FastPool(CONFIG, tuning=TUNING)
    stores = [pool.layer_store()]
    for _ in steps(stores[0], draw(prompt, prompt + 3), prompt):
        pass
    stores += [stores[0].fork() for _ in range(forks)]
    stores[-1].crop(prompt - cut)
    gc.collect()
    seen = {}
    pages = {page for store in stores for row in state_of(store).rows for page in row.pages}
    for state in map(state_of, stores):
        cold, parts = state.cold, [*state.recent._sinks, *state.recent._hot]
        for tensor in parts:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        pages = {page for store in stores for row in state_of(store).rows for page in row.pages}
        assert cold.arena.page_bytes * len(pages) <= pool.memory().ram
    index = state_of(stores[0]).cold.index
    assert index is not None
    on_device = sum(table.record_bytes for table in index.tables)
    assert sum(seen.values()) + len(pages) * on_device <= pool.memory().device
    for store in stores:
        store.reset()
    assert pool.memory() == (0, 0, 0)


def test_what_lives_is_what_memory_says() -> None:
    live_tensors()
