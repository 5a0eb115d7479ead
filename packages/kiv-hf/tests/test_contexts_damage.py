"""Bytes that are not those that were written: a named error, or the same numbers, and never others."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import torch
from contexts_helpers import (
    LONG_PAGES,
    bits,
    cache_of,
    files_in,
    filled,
    of_cache,
    on_cpu,
    read_all,
)
from contexts_systems import FlippedIO, assert_verify_fails
from kiv_hf.contexts import write as write_module
from kiv_hf.contexts.read import read
from kiv_hf.contexts.saved import SavedCache, SavedLayer
from kiv_hf.contexts.verify import verify
from kiv_hf.contexts.write import write
from kiv_reference.errors import KIVCorruptError, KIVMismatchError, KIVStorageError, KIVUsageError

if TYPE_CHECKING:
    from pathlib import Path


NAMED = (KIVCorruptError, KIVStorageError)


def padding(name: str, data: bytes, at: int) -> bool:
    """Tell whether a byte is one of the spaces that pad a segment's header, which have one checksum with it."""
    return "seg" in name and 8 + len(data[8:4096].rstrip()) < at < 4095


def check_flip(folder: Path, name: str, at: int, bit: int, expected: Any) -> None:
    io = FlippedIO(str(folder / name), at, bit)
    try:
        found = read_all(folder, io)
    except NAMED:
        return
    assert found == expected, f"another number of bit {bit} of byte {at} of {name}"
    pytest.fail(f"bit {bit} of byte {at} of {name} is read by nobody")


def test_every_byte_of_a_small_context(tmp_path: Path) -> None:
    """A bit of each byte of all files, and of every eighth of the spaces that pad a header: 16 KB."""
    saved = cache_of(filled(36, padding=5), indexed=True, row=torch.arange(3))
    folder = tmp_path / "x"
    write(folder, saved)
    expected, files = of_cache(saved), files_in(folder)
    assert read_all(folder) == expected
    assert 14_000 < sum(map(len, files.values())) < 18_000
    for name, data in files.items():
        for at, bit in bits(data, 1):
            if not padding(name, data, at) or at % 8 == 0:
                check_flip(folder, name, at, bit, expected)


def test_bytes_of_a_context_of_several_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the manifest and the headers, and every 61st byte of the data; 64 KB in blocks of 16 tokens."""
    monkeypatch.setattr(write_module, "SEGMENT_BYTES", 1 << 14)
    saved = cache_of(filled(240, config=LONG_PAGES), filled(200, config=LONG_PAGES, seed=2), config=LONG_PAGES)
    folder = tmp_path / "x"
    write(folder, saved)
    expected, files = of_cache(saved), files_in(folder)
    assert 50_000 < sum(map(len, files.values())) < 70_000
    for name, data in files.items():
        for at, bit in bits(data, 2):
            if (at < 4096 and not padding(name, data, at)) or at % 61 == 0:
                check_flip(folder, name, at, bit, expected)
            if at % 997 == 0:
                assert_verify_fails(folder, FlippedIO(str(folder / name), at, bit))


def test_every_truncation(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    write(folder, cache_of(filled(36), indexed=True))
    for name, data in files_in(folder).items():
        for length in range(len(data) - 1, -1, -1):
            if padding(name, data, length) and length % 8:
                continue
            os.truncate(folder / name, length)
            with pytest.raises(NAMED):
                read(folder, on_cpu)
        (folder / name).write_bytes(data)
    with open(folder / "MANIFEST.json", "ab") as file:
        file.write(b" ")
    with pytest.raises(KIVCorruptError):
        read(folder, on_cpu)


def test_the_state_of_a_newer_kiv_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kiv_hf.contexts import manifest

    saved = SavedCache(filled().config, [SavedLayer("L", None, {})], 0, {}, {})
    for name, value, remedy in (("VERSION", 2, "Upgrade"), ("SPEC_VERSION", 6, "Upgrade"), ("SPEC_VERSION", 4, "Read")):
        with monkeypatch.context() as patch:
            patch.setattr(manifest, name, value)
            write(tmp_path / "x", saved)
        with pytest.raises(KIVMismatchError, match=f"got {value}. {remedy}"):
            read(tmp_path / "x", on_cpu)


def test_there_is_no_context(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "none", tmp_path / "file", tmp_path / "none/none"):
        with pytest.raises(KIVUsageError, match="no"):
            read(path, on_cpu)
        with pytest.raises(KIVUsageError):
            verify(path)
