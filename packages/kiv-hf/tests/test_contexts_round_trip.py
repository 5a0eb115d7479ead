"""What is saved is what is read again, bit for bit, of every kind of cache."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from contexts_helpers import (
    CPU,
    LONG_PAGES,
    SMALL,
    IndexedPages,
    answers,
    cache_of,
    filled,
    of_cache,
    of_snapshot,
    on_cpu,
    read_all,
    shared,
    snapshot_of,
)
from contexts_systems import WatchedIO
from kiv_hf.contexts import commit
from kiv_hf.contexts import write as write_module
from kiv_hf.contexts.read import read
from kiv_hf.contexts.saved import SavedCache, SavedLayer
from kiv_hf.contexts.verify import verify
from kiv_hf.contexts.write import write
from kiv_reference.errors import KIVError, KIVUsageError
from kiv_reference.pool import ReferencePool
from kiv_reference.snapshot import Snapshot, TensorPages
from safetensors.torch import load_file

if TYPE_CHECKING:
    from pathlib import Path

STORES = {
    "float32": {"dtype": torch.float32},
    "bfloat16": {"dtype": torch.bfloat16, "batch": 2},
    "float16": {"dtype": torch.float16, "padding": 9, "batch": 2},
    "float64": {"dtype": torch.float64},
    "all padding": {"padding": 30},
    "blocks of 16": {"tokens": 150, "config": LONG_PAGES, "dtype": torch.bfloat16, "padding": 5},
    "no pages": {"tokens": 9},
    "one token": {"tokens": 1},
    "index": {"indexed": True, "tokens": 90, "batch": 2},
    "exact": {"config": replace(SMALL, retrieve_tokens=None, max_missed_mass=None)},
}


@pytest.mark.parametrize("name", STORES)
@pytest.mark.parametrize("small_segments", [True, False])
def test_a_store_goes_on_bit_for_bit(
    name: str, small_segments: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one file, and of one for each page; with padding, an index, blocks of 16 tokens, and without pages."""
    if small_segments:
        monkeypatch.setattr(write_module, "SEGMENT_BYTES", 1)
    kind: dict[str, Any] = STORES[name]
    indexed = kind.get("indexed", False)
    store = filled(**{key: value for key, value in kind.items() if key != "indexed"})
    config = store.config
    saved = cache_of(store, config=config, indexed=indexed)
    write(tmp_path / "x", saved)
    found = read(tmp_path / "x", on_cpu)
    assert of_cache(found) == of_cache(saved)
    assert not verify(tmp_path / "x")
    like = {key: kind[key] for key in ("dtype", "batch") if key in kind}
    expected = answers(store, **like)
    other = ReferencePool(config).layer_store()
    assert found.layers[0].snapshot is not None
    other.restore(found.layers[0].snapshot)
    assert torch.equal(answers(other, **like), expected)


def test_pages_that_sequences_share_are_there_once(tmp_path: Path) -> None:
    snapshot = shared(snapshot_of(filled(90)))
    saved = SavedCache(SMALL, [SavedLayer("L", snapshot, {})], 90, {}, {})
    write(tmp_path / "x", saved)
    assert read_all(tmp_path / "x") == of_cache(saved)
    found = read(tmp_path / "x", on_cpu).layers[0].snapshot
    assert found is not None
    assert (len(found.cold), found.pages.shape) == (20, (2, 20))
    pool = ReferencePool(SMALL)
    stores = pool.layer_store(), pool.layer_store()
    for store, each in zip(stores, (snapshot, found), strict=True):
        store.restore(each)
    assert torch.equal(*(answers(store, batch=2) for store in stores))


def test_layers_of_different_lengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has as many pages as it has, in segments of three pages of all."""
    stores = [filled(60, seed=1), filled(30, seed=2), filled(8, seed=3), filled(45, seed=4)]
    page = 2 * 4 * (4 + 6) * 4
    monkeypatch.setattr(write_module, "SEGMENT_BYTES", 3 * 4 * page)
    saved = cache_of(*stores)
    write(tmp_path / "x", saved)
    assert read_all(tmp_path / "x") == of_cache(saved)
    assert len(os.listdir(tmp_path / "x/seg")) == 5


def test_what_is_no_snapshot_is_not_saved(tmp_path: Path) -> None:
    good = cache_of(filled())
    snapshot = good.layers[0].snapshot
    assert snapshot is not None
    others = [
        replace(good, tokens=-1), replace(good, config=replace(SMALL, tail="none")), replace(good, provenance={"a": 1}),
        replace(good, layers=[SavedLayer("L", replace(snapshot, sampled=snapshot.sampled.double()), {})]),
    ]  # fmt: skip
    for saved in others:
        with pytest.raises(KIVError):
            write(tmp_path / "x", saved)
    assert not os.listdir(tmp_path)


def test_the_files_are_safetensors(tmp_path: Path) -> None:
    saved = cache_of(filled(90), indexed=True)
    write(tmp_path / "x", saved)
    tensors: dict[str, torch.Tensor] = {}
    for path in (tmp_path / "x/seg").iterdir():
        tensors.update(load_file(path))
        assert (8 + int.from_bytes(path.read_bytes()[:8], "little")) % 4096 == 0
    snapshot = saved.layers[0].snapshot
    assert isinstance(snapshot, Snapshot)
    assert isinstance(snapshot.cold, IndexedPages)
    assert torch.equal(tensors["0.key"], snapshot.read_pages(False, 0, 20))
    assert torch.equal(tensors["0.recent.value"], snapshot.value)
    assert torch.equal(tensors["0.index.codes"], snapshot.cold.coded["codes"])


def test_rows_here_and_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Single blocks in any order, from several segments, and no more than those."""
    monkeypatch.setattr(write_module, "SEGMENT_BYTES", 1)
    store = filled(200, config=LONG_PAGES)
    write(tmp_path / "x", cache_of(store, config=LONG_PAGES))
    io = WatchedIO()
    snapshot = read(tmp_path / "x", on_cpu, io).layers[0].snapshot
    assert snapshot is not None
    assert snapshot.cold.block_tokens == 16
    whole = snapshot_of(store).read_pages(True, 0, 5).view(-1, 16 * 6)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))[:13].numpy()
    out = torch.zeros(13, 16 * 6)
    before = len(io.calls)
    at = torch.arange(13).numpy() * 16 * 6 * 4
    snapshot.cold.read(True, order, at[::-1].copy(), out.view(-1).view(torch.uint8).numpy())
    assert torch.equal(out.flip(0), whole[torch.from_numpy(order)])
    assert io.calls[before:].count("read") <= 13


def test_never_more_than_one_batch_of_pages_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kiv_hf.contexts import segment_writer

    monkeypatch.setattr(segment_writer, "BATCH_BYTES", 3 * 2 * 4 * 4 * 4)
    asked: list[int] = []

    class Counted(TensorPages):
        def read(self, values: bool, blocks: Any, at: Any, out: Any) -> None:
            asked.append(len(blocks))
            super().read(values, blocks, at, out)

    saved = cache_of(filled(100))
    snapshot = saved.layers[0].snapshot
    assert snapshot is not None
    pages = [snapshot.read_pages(values, 0, len(snapshot.cold)) for values in (False, True)]
    counted = replace(snapshot, cold=Counted(pages[0], pages[1]))
    write(tmp_path / "x", replace(saved, layers=[SavedLayer("L", counted, {})]))
    assert max(asked) == 6, "three pages of two heads"
    assert sum(asked) == 2 * 2 * len(counted.cold)
    found = read(tmp_path / "x", on_cpu).layers[0].snapshot
    assert of_snapshot(found) == of_snapshot(snapshot)


def test_progress_counts_bytes_up_to_all(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    write(tmp_path / "x", cache_of(filled(100)), progress=lambda done, of: told.append((done, of)))
    assert told[-1][0] == told[-1][1] > 0
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    told.clear()
    assert not verify(tmp_path / "x", progress=lambda done, of: told.append((done, of)))
    assert told[-1][0] == told[-1][1] > 0


def test_files_are_closed_with_the_last_reader(tmp_path: Path) -> None:
    write(tmp_path / "x", cache_of(filled()))
    io = WatchedIO()
    found = read(tmp_path / "x", on_cpu, io)
    snapshot = found.layers[0].snapshot
    del found
    assert len(io.open) == 2
    assert snapshot is not None
    snapshot.read_pages(False, 0, 2)
    del snapshot
    assert not io.open


def test_a_snapshot_goes_to_its_layers_device(tmp_path: Path) -> None:
    """Everything but pages, and tensors of the cache itself; asked for by the number of the layer."""
    store = filled(padding=3)
    saved = cache_of(store, store, flag=torch.ones(2))
    saved.layers[1].state["row"] = torch.ones(2)
    write(tmp_path / "x", saved)
    asked: list[int] = []

    def device_of(layer: int) -> torch.device:
        asked.append(layer)
        return CPU

    found = read(tmp_path / "x", device_of)
    assert asked == [0, 1]
    assert of_cache(found) == of_cache(saved)


def test_the_manifest_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "x", cache_of(filled()))
    before = read_all(tmp_path / "x")
    monkeypatch.setattr(commit, "LARGEST", 1000)
    with pytest.raises(KIVUsageError, match="manifest"):
        write(tmp_path / "x", cache_of(filled(60)))
    assert read_all(tmp_path / "x") == before
    assert len(os.listdir(tmp_path / "x/seg")) == 2
