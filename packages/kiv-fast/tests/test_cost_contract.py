"""What a step may cost (README): it reads the keys of its candidates and the rows that it selected, and holds what
`memory()` says.

Spies count the bytes that files and tensors really give; the counters of the pool are not asked.
"""

import gc
import os
from dataclasses import replace

import pytest
from fast_helpers import SCALE, draw, index_bytes
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from kiv_fast import FastPool, Tuning
from kiv_fast.device.gather import Gather
from kiv_fast.tiers.file_io import FileIO
from kiv_reference import KIVConfig

CONFIG = KIVConfig(hot_tokens=8, sink_tokens=2, page_tokens=4, index_channels=6, candidate_tokens=20, retrieve_tokens=7)
TUNING = Tuning(chunk_bytes=4096)
WIDTH, ITEM = 16, 4
QUICK = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),  # an example is small enough as it is
)


class CountingIO(FileIO):
    """Counts the bytes that are read from files, and notes each read."""

    def __init__(self):
        self.reads = []

    def read(self, handle, buffers, offset):
        count = super().read(handle, buffers, offset)
        self.reads.append(count)
        return count


@pytest.fixture
def gathered(monkeypatch):
    """Bytes gathered from each table in RAM, by its identity."""
    counts, rows = {}, Gather.rows

    def counting(self, table, width, units, out=None):
        found = rows(self, table, width, units, out)
        counts[id(table)] = counts.get(id(table), 0) + found.nbytes
        return found

    monkeypatch.setattr(Gather, "rows", counting)
    return counts


def allowed(store):
    """Bytes of the candidates' keys, and of the selected rows, of the last call."""
    (block,) = store.report.blocks
    assert block.mode == "retrieve"
    keys = int((block.candidate_positions >= 0).sum()) * WIDTH * ITEM
    return keys, int((block.selected_positions >= 0).sum()) * WIDTH * ITEM


def steps(store, data, prompt):
    """Fill a store, then yield after each append of a decode step, and after its attend."""
    store.append(*(part[:, :, :prompt] for part in data[:2]))
    store.attend(data[2][:, :, :prompt], scale=SCALE)
    for at in range(prompt, data[0].shape[2]):
        store.append(*(part[:, :, at : at + 1] for part in data[:2]))
        yield
        store.attend(data[2][:, :, at : at + 1], scale=SCALE)


@given(seed=st.integers(0, 999), prompt=st.integers(80, 300))
@QUICK
def ram_steps(gathered, seed, prompt):
    pool = FastPool(CONFIG, tuning=TUNING, ops="torch")  # the compiled ones read rows where they lie
    store = pool.layer_store()
    for _ in steps(store, draw(seed, prompt + 6), prompt):
        arena = store.state.cold.arena
        if gathered.get("open"):
            keys, values = allowed(store)
            assert gathered.get(id(arena._key), 0) <= keys
            assert gathered.get(id(arena._value), 0) <= values
        gathered.clear()
        gathered["open"] = True
    gathered.clear()


def test_a_step_gathers_candidates_and_selected_rows(gathered):
    ram_steps(gathered)


@given(seed=st.integers(0, 999), prompt=st.integers(80, 300), ram=st.integers(2_000, 30_000))
@QUICK
def disk_steps(folder, seed, prompt, ram):
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
        arena = store.state.cold.arena
        held = arena.resident * arena.page_bytes + index_bytes(store)
        assert held <= pool.memory().ram <= base + ram
    pool.close()


def test_a_step_reads_no_more_from_disk(tmp_path):
    disk_steps(os.fspath(tmp_path))


@given(prompt=st.integers(60, 200), forks=st.integers(0, 2), cut=st.integers(0, 60))
@QUICK
def live_tensors(prompt, forks, cut):
    """Tensors on the device that the states of a pool refer to take no more than `memory()` says."""
    pool = FastPool(CONFIG, tuning=TUNING)
    stores = [pool.layer_store()]
    for _ in steps(stores[0], draw(prompt, prompt + 3), prompt):
        pass
    stores += [stores[0].fork() for _ in range(forks)]
    stores[-1].crop(prompt - cut)
    gc.collect()
    seen = {}
    for state in (store.state for store in stores):
        cold, parts = state.cold, [*state.recent._sinks, *state.recent._hot]
        for tensor in parts:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        pages = {page for store in stores for row in store.state.rows for page in row.pages}
        assert cold.arena.page_bytes * len(pages) <= pool.memory().ram
        on_device = sum(table.record_bytes for table in cold.index.tables)
    assert sum(seen.values()) + len(pages) * on_device <= pool.memory().device
    for store in stores:
        store.reset()
    assert pool.memory() == (0, 0, 0)


def test_what_lives_is_what_memory_says():
    live_tensors()
