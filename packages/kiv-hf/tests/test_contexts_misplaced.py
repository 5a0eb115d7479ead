"""Right bytes in a wrong place, and files that change while they are open."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from contexts_helpers import (
    LONG_PAGES,
    cache_of,
    files_in,
    filled,
    of_cache,
    of_snapshot,
    on_cpu,
    put_back,
    read_all,
    snapshot_of,
)
from contexts_systems import assert_verify_fails
from kiv_hf.contexts import write as write_module
from kiv_hf.contexts.pages import SavedPages
from kiv_hf.contexts.read import read
from kiv_hf.contexts.segments import parts_of
from kiv_hf.contexts.verify import verify
from kiv_hf.contexts.write import write
from kiv_reference.errors import KIVCorruptError, KIVStorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


NAMED = (KIVCorruptError, KIVStorageError)


@pytest.fixture
def two_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A context of two layers of the same shape, keys like values, in segments of two pages."""
    monkeypatch.setattr(write_module, "SEGMENT_BYTES", 2 * 2 * 2 * 4 * (4 + 4) * 4)
    generator = torch.Generator().manual_seed(5)
    stores = [filled(1), filled(1)]
    for store in stores:
        store.reset()
        store.append(*(torch.randn(1, 2, 34, 4, generator=generator) for _ in range(2)))
    write(tmp_path / "x", cache_of(*stores))
    return tmp_path / "x"


def segments(folder: Path) -> list[Path]:
    """Return the segments of pages, in order."""
    opened = read(folder, on_cpu).layers[0].snapshot
    assert opened is not None
    assert isinstance(opened.cold, SavedPages)
    return [type(folder)(file.path) for file in opened.cold._opened.files[:-1]]


def places(data: bytes) -> dict[str, slice]:
    """Return where each tensor of a segment is."""
    start = 8 + int.from_bytes(data[:8], "little")
    return {name: slice(p.begin, p.begin + p.nbytes) for name, p in parts_of(data[:start], len(data)).items()}


def swaps(data: bytes) -> Iterator[tuple[slice, ...]]:
    """Yield what might be taken for each other within a segment of two pages of two layers."""
    at = places(data)
    yield at["0.key"], at["0.value"]
    yield at["0.key"], at["1.key"]
    yield at["0.value"], at["1.value"]
    size = (at["0.key"].stop - at["0.key"].start) // 4  # a page of one head
    begin = at["0.key"].start
    for one, other in ((0, 1), (0, 2), (1, 3)):  # heads of a page, and pages
        yield tuple(slice(begin + n * size, begin + (n + 1) * size) for n in (one, other))
    yield at["0.key.sums"], at["0.value.sums"]
    yield at["0.key.sums"], at["1.key.sums"]


def test_right_bytes_in_a_wrong_place(two_layers: Path) -> None:
    """Keys and values, layers, heads and pages of each other; and together with their checksums."""
    path = segments(two_layers)[0]
    data = path.read_bytes()
    at = places(data)
    pairs = [[pair] for pair in swaps(data)]
    pairs.append([(at["0.key"], at["0.value"]), (at["0.key.sums"], at["0.value.sums"])])
    pairs.append([(at[f"0.{x}"], at[f"1.{x}"]) for x in ("key", "value", "key.sums", "value.sums")])
    for swapped in pairs:
        damaged = bytearray(data)
        for one, other in swapped:
            damaged[one], damaged[other] = data[other], data[one]
        assert damaged != data
        path.write_bytes(damaged)
        with pytest.raises(KIVCorruptError):
            read_all(two_layers)
        assert_verify_fails(two_layers)
    path.write_bytes(data)
    assert not verify(two_layers)


def test_segments_of_each_other(two_layers: Path, tmp_path: Path) -> None:
    """Of the same context, and of another one of the same shape."""
    first, second = segments(two_layers)[:2]
    files = files_in(two_layers)
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    with pytest.raises(KIVCorruptError):
        read_all(two_layers)
    put_back(two_layers, files)
    write(tmp_path / "y", cache_of(filled(34, seed=7)))
    shutil.copy(segments(tmp_path / "y")[0], first)
    with pytest.raises(KIVCorruptError):
        read_all(two_layers)
    put_back(two_layers, files)
    shutil.copy(tmp_path / "y/MANIFEST.json", two_layers / "MANIFEST.json")
    with pytest.raises(KIVCorruptError, match="be there"):
        read_all(two_layers)


def test_blocks_of_a_page(tmp_path: Path) -> None:
    """Sixteen tokens in the place of the next sixteen."""
    write(tmp_path / "x", cache_of(filled(200, config=LONG_PAGES), config=LONG_PAGES))
    path = segments(tmp_path / "x")[0]
    data = bytearray(path.read_bytes())
    at, size = places(bytes(data))["0.value"].start, 16 * 6 * 4
    data[at : at + size], data[at + size : at + 2 * size] = data[at + size : at + 2 * size], data[at : at + size]
    path.write_bytes(data)
    snapshot = read(tmp_path / "x", on_cpu).layers[0].snapshot
    assert snapshot is not None
    with pytest.raises(KIVCorruptError, match=r"values of layer 0, head 0, sequence 0, tokens 3 to 19.*2 of 2"):
        snapshot.cold.read(True, np.arange(2), np.arange(2) * size, np.empty(2 * size, np.uint8))
    expected = snapshot_of(filled(200, config=LONG_PAGES)).read_pages(True, 1, 3)
    assert torch.equal(snapshot.read_pages(True, 1, 3), expected)


@pytest.mark.parametrize("after", ["truncated", "emptied", "overwritten", "deleted", "replaced", "saved again"])
def test_files_change_while_they_are_open(after: str, two_layers: Path) -> None:
    """Before pages are read: a named error, or the right numbers."""
    saved = read(two_layers, on_cpu)
    expected = read_all(two_layers)
    for path in segments(two_layers):
        data = path.read_bytes()
        if after == "truncated":
            os.truncate(path, len(data) - 600)
        elif after == "emptied":
            os.truncate(path, 0)
        elif after == "overwritten":
            path.write_bytes(data[:4096] + bytes(len(data) - 4096))
        elif after == "deleted":
            path.unlink()
        elif after == "replaced":
            path.with_suffix(".new").write_bytes(bytes(len(data)))
            path.with_suffix(".new").replace(path)
    if after == "saved again":
        write(two_layers, cache_of(filled(60, seed=3)))
    if after in ("deleted", "replaced", "saved again"):
        assert of_cache(saved) == expected
    else:
        with pytest.raises(NAMED, match=r"seg/[0-9a-f]{32}\.safetensors must"):
            of_snapshot(saved.layers[1].snapshot)


def test_what_was_damaged_can_be_read_once_it_is_mended(two_layers: Path) -> None:
    snapshot = read(two_layers, on_cpu).layers[1].snapshot
    assert snapshot is not None
    path = segments(two_layers)[0]
    data = path.read_bytes()
    os.truncate(path, len(data) - 8)
    with pytest.raises(KIVCorruptError):
        of_snapshot(snapshot)
    path.write_bytes(data)
    assert of_snapshot(snapshot)


def test_a_page_that_was_cut_off_is_verified_but_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    write(folder, cache_of(filled(60)))
    write(folder, cache_of(filled_less()), previous_pages=5)
    assert read_all(folder) == of_cache(cache_of(filled_less()))
    (path,) = segments(folder)
    data = bytearray(path.read_bytes())
    data[places(bytes(data))["0.key"].stop - 1] ^= 1
    path.write_bytes(data)
    assert read_all(folder) == of_cache(cache_of(filled_less()))
    (fault,) = verify(folder)
    assert (fault.path, fault.tensor) == (str(path), "0.key")


def filled_less() -> Any:
    store = filled(60)
    store.crop(30)
    return store
