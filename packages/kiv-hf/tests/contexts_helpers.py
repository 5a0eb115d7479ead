"""Small caches that are saved, and what of two of them can be compared."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from kiv_fast.index.index import code_pages
from kiv_hf.contexts.read import read
from kiv_hf.contexts.saved import SavedCache, SavedLayer
from kiv_reference import KIVConfig
from kiv_reference.pool import ReferencePool
from kiv_reference.snapshot import TensorPages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kiv_fast.tiers.durable_io import DurableIO
    from kiv_reference.snapshot import Snapshot
    from kiv_reference.store import ReferenceStore

SMALL = KIVConfig(
    hot_tokens=8, sink_tokens=2, page_tokens=4, candidate_tokens=8, retrieve_tokens=4, index_channels=2,
    max_missed_mass=0.1,
)  # fmt: skip
LONG_PAGES = replace(SMALL, page_tokens=32, hot_tokens=16, sink_tokens=3)
CPU = torch.device("cpu")


def on_cpu(_: int) -> torch.device:
    return CPU


def filled(
    tokens: int = 40,
    *,
    config: KIVConfig = SMALL,
    dtype: torch.dtype = torch.float32,
    padding: int = 0,
    batch: int = 1,
    seed: int = 0,
) -> ReferenceStore:
    """Return a store that has attended random tokens, the first of the last sequence padding."""
    generator = torch.Generator().manual_seed(seed)
    store = ReferencePool(config).layer_store()
    key, value, query = (torch.randn(batch, h, tokens, w, generator=generator) for h, w in ((2, 4), (2, 6), (4, 4)))
    valid = None
    if padding:
        valid = torch.ones(batch, tokens, dtype=torch.bool)
        valid[-1, :padding] = False
    store.append(key.to(dtype), value.to(dtype), valid)
    store.attend(query.to(dtype), scale=0.5)
    return store


class IndexedPages(TensorPages):
    """Pages that have an index, as those of `kiv_fast` do."""

    def __init__(self, key: torch.Tensor, value: torch.Tensor) -> None:
        super().__init__(key, value)
        weights = torch.ones(len(key), key.shape[1], key.shape[3])
        self.coded = code_pages(key, value, None, weights, SMALL.index_channels)._asdict()

    def index(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        return {name: part[start:stop] for name, part in self.coded.items()}


def snapshot_of(store: ReferenceStore, *, indexed: bool = False) -> Snapshot:
    """Return a store's snapshot, with an index if one is asked for."""
    snapshot = store.snapshot()
    assert snapshot is not None
    if not indexed:
        return snapshot
    pages = [snapshot.read_pages(values, 0, len(snapshot.cold)) for values in (False, True)]
    return replace(snapshot, cold=IndexedPages(pages[0], pages[1]))


def shared(snapshot: Snapshot) -> Snapshot:
    """Return a snapshot with the sequence of another one twice, whose pages are there once."""
    parts = {name: getattr(snapshot, name).repeat(2, 1, 1, 1) for name in ("key", "value", "sampled")}
    return replace(snapshot, pages=snapshot.pages.repeat(2, axis=0), **parts)


def cache_of(*stores: ReferenceStore, config: KIVConfig = SMALL, indexed: bool = False, **state: Any) -> SavedCache:
    """Return what is saved of a cache of these stores."""
    snapshots = [snapshot_of(store, indexed=indexed) for store in stores]
    layers = [SavedLayer("KIVLayer", snapshot, {"number": n}) for n, snapshot in enumerate(snapshots)]
    tokens = max((store.length for store in stores), default=0)
    return SavedCache(config, layers, tokens, {"weights": "3fa9"}, state)


def answers(store: ReferenceStore, *, dtype: torch.dtype = torch.float32, batch: int = 1) -> torch.Tensor:
    """Append tokens to a store, and return what it answers."""
    generator = torch.Generator().manual_seed(9)
    key, value, query = (torch.randn(batch, h, 3, w, generator=generator) for h, w in ((2, 4), (2, 6), (4, 4)))
    store.append(key.to(dtype), value.to(dtype))
    return store.attend(query.to(dtype), scale=0.5)


def numbers(value: Any) -> Any:
    """Return what can be compared, of states and snapshots: types, shapes and bytes."""
    if isinstance(value, torch.Tensor):
        plain = value.resolve_conj().contiguous().view(-1).view(torch.uint8)
        return str(value.dtype), tuple(value.shape), plain.numpy().tobytes()
    if isinstance(value, dict):
        return {(type(key), key): numbers(item) for key, item in value.items()}
    return type(value), float.hex(value) if isinstance(value, float) else value


def of_snapshot(snapshot: Snapshot | None) -> Any:
    """Return all that a snapshot has, its pages and their index with it, as what can be compared."""
    if snapshot is None:
        return None
    count = len(snapshot.cold)
    parts = [snapshot.key, snapshot.value, snapshot.sampled, *(snapshot.read_pages(v, 0, count) for v in (False, True))]
    index = snapshot.cold.index(0, count)
    valid = None if snapshot.valid is None else numbers(snapshot.valid)
    found = [numbers(part) for part in parts], valid, snapshot.pages.tolist(), snapshot.finite
    return found, None if index is None else numbers(dict(index))


def of_cache(saved: SavedCache) -> Any:
    """Return all of a cache as what can be compared."""
    layers = [(layer.kind, numbers(layer.state), of_snapshot(layer.snapshot)) for layer in saved.layers]
    return saved.config, layers, saved.tokens, saved.provenance, numbers(saved.state)


def read_all(folder: Path | str, io: DurableIO | None = None) -> Any:
    """Read a context with all its pages, as what can be compared."""
    return of_cache(read(folder, on_cpu, io))


def files_in(folder: Path) -> dict[str, bytes]:
    """Return all files of a context."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def put_back(folder: Path, files: dict[str, bytes]) -> None:
    """Have these files in a context, and no others."""
    for name in files_in(folder).keys() - files.keys():
        (folder / name).unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)


def bits(data: bytes, seed: int) -> Iterator[tuple[int, int]]:
    """Yield each byte's place, and a bit of it to turn over."""
    turned = np.random.default_rng(seed).integers(0, 8, len(data))
    yield from ((at, 1 << int(bit)) for at, bit in enumerate(turned))
