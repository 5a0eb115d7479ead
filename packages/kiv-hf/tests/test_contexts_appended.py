"""More, or less, of a text is saved to its folder: what is there already is not written again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from contexts_helpers import SMALL, cache_of, filled, of_cache, on_cpu, read_all
from contexts_systems import WatchedIO
from kiv_hf.contexts import previous
from kiv_hf.contexts import write as write_module
from kiv_hf.contexts.read import read
from kiv_hf.contexts.verify import verify
from kiv_hf.contexts.write import write
from kiv_reference.errors import KIVCorruptError, KIVUsageError

if TYPE_CHECKING:
    from pathlib import Path

    from kiv_reference.store import ReferenceStore


def grown(store: ReferenceStore, tokens: int, seed: int = 8) -> ReferenceStore:
    more = filled(tokens, seed=seed).contents
    assert more is not None
    store.append(more.key.tensor, more.value.tensor)
    return store


def segments(folder: Path) -> set[str]:
    return {path.name for path in (folder / "seg").iterdir()}


def test_only_new_pages_are_written(tmp_path: Path) -> None:
    """Counted: the old segment is the same file, and bytes are those of the new pages and what is beside them."""
    store = filled(200)
    write(tmp_path / "x", cache_of(store))
    old = segments(tmp_path / "x")
    saved = cache_of(grown(store, 12))
    io = WatchedIO()
    write(tmp_path / "x", saved, previous_pages=47, io=io)
    new = segments(tmp_path / "x")
    assert len(old & new) == 1
    pages = 3 * 2 * 4 * (4 + 6) * 4 + 3 * 2 * 2 * 8
    paths = [tmp_path / "x/seg" / name for name in new - old]
    assert io.written == sum(p.stat().st_size for p in (*paths, tmp_path / "x/MANIFEST.json"))
    assert 4096 + pages in [path.stat().st_size for path in paths]
    assert read_all(tmp_path / "x") == of_cache(saved)
    assert not verify(tmp_path / "x")


def test_turn_by_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chat that grows and is cut back, each time saved as far as it differs, from a store that was read from it."""
    monkeypatch.setattr(write_module, "SEGMENT_BYTES", 3 * 2 * 4 * (4 + 6) * 4)
    folder = tmp_path / "x"
    store = filled(60, padding=3)
    write(folder, cache_of(store))
    for turn, (crop, tokens) in enumerate([(60, 30), (83, 9), (70, 2), (23, 40), (63, 1)]):
        store.crop(crop)
        grown(store, tokens, seed=turn)
        before = max(0, (min(crop, store.length) - 10) // 4)
        saved = cache_of(store)
        write(folder, saved, previous_pages=before)
        assert read_all(folder) == of_cache(saved)
        snapshot = read(folder, on_cpu).layers[0].snapshot
        assert snapshot is not None
        store.reset()
        store.restore(snapshot)
        assert not verify(folder)


def test_a_context_is_saved_over_the_one_its_pages_are_read_from(tmp_path: Path) -> None:
    saved = cache_of(filled(100), indexed=True)
    write(tmp_path / "x", saved)
    old = segments(tmp_path / "x")
    write(tmp_path / "x", read(tmp_path / "x", on_cpu))
    assert not old & segments(tmp_path / "x")
    assert read_all(tmp_path / "x") == of_cache(saved)


def test_less_of_it(tmp_path: Path) -> None:
    """No page is written; the index is that of the pages that are left."""
    store = filled(100)
    write(tmp_path / "x", cache_of(store, indexed=True))
    old = segments(tmp_path / "x")
    store.crop(50)
    saved = cache_of(store, indexed=True)
    write(tmp_path / "x", saved, previous_pages=10)
    assert len(old & segments(tmp_path / "x")) == 1
    assert len(segments(tmp_path / "x")) == 2
    assert read_all(tmp_path / "x") == of_cache(saved)


def test_pages_without_an_index_beside_others(tmp_path: Path) -> None:
    store = filled(100)
    write(tmp_path / "x", cache_of(store, indexed=True))
    write(tmp_path / "x", cache_of(grown(store, 12)), previous_pages=22)
    snapshot = read(tmp_path / "x", on_cpu).layers[0].snapshot
    assert snapshot is not None
    assert snapshot.cold.index(0, 22) is not None
    assert snapshot.cold.index(0, 23) is None


def test_many_small_segments_are_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a file that readers have open."""
    monkeypatch.setattr(previous, "MOST_SMALL", 4)
    store = filled(14)
    write(tmp_path / "x", cache_of(store))
    counts: list[int] = []
    for pages in range(1, 8):
        saved = cache_of(grown(store, 4, seed=pages))
        write(tmp_path / "x", saved, previous_pages=pages)
        counts.append(len(segments(tmp_path / "x")))
        assert read_all(tmp_path / "x") == of_cache(saved)
    assert counts == [3, 4, 5, 6, 2, 3, 4]


def other_text() -> Any:
    return cache_of(filled(100, seed=3))


REFUSED = {
    "more than there are in the folder": (lambda: cache_of(filled(140)), 30, "hold the first 30"),
    "more than there are in the cache": (lambda: cache_of(filled(60)), 13, "0 to 12"),
    "less than none": (lambda: cache_of(filled(60)), -1, "0 to 12"),
    "another text": (other_text, 22, "another page 21"),
    "another text before": (other_text, 1, "another page 0"),
    "another dtype": (lambda: cache_of(filled(100, dtype=torch.bfloat16)), 22, "float32"),
    "another layer": (lambda: cache_of(filled(100), filled(100)), 22, "other layers"),
    "another page size": (
        lambda: cache_of(filled(100, config=replace(SMALL, page_tokens=8)), config=replace(SMALL, page_tokens=8)),
        5, "page_tokens",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_pages_of_something_else_are_not_kept(name: str, tmp_path: Path) -> None:
    make, pages, message = REFUSED[name]
    first = cache_of(filled(100))
    write(tmp_path / "x", first)
    with pytest.raises(KIVUsageError, match=message):
        write(tmp_path / "x", make(), previous_pages=pages)
    assert read_all(tmp_path / "x") == of_cache(first)


def test_a_folder_without_a_context_has_no_pages(tmp_path: Path) -> None:
    with pytest.raises(KIVUsageError, match="must be a saved context"):
        write(tmp_path / "x", cache_of(filled(100)), previous_pages=3)


def test_pages_that_are_damaged_are_not_built_upon(tmp_path: Path) -> None:
    store = filled(100)
    write(tmp_path / "x", cache_of(store))
    path = max((tmp_path / "x/seg").iterdir(), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(KIVCorruptError):
        write(tmp_path / "x", cache_of(grown(store, 9)), previous_pages=22)
