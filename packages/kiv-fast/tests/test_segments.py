from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from kiv_fast import FastPool, Tuning
from kiv_fast.shape import Shape
from kiv_fast.tiers.folder import folder_for, in_memory
from kiv_fast.tiers.segments import Segments
from kiv_reference import KIVConfig
from kiv_reference.errors import KIVUsageError
from safetensors.torch import load

if TYPE_CHECKING:
    from pathlib import Path

CPU = torch.device("cpu")


def test_a_segment_is_a_safetensors_file_at_page_boundaries(tmp_path: Path) -> None:
    shape = Shape(1, 2, 8, 4, torch.bfloat16, CPU)
    pool = FastPool(KIVConfig(page_tokens=16, ram_bytes=0, spill_dir=tmp_path))
    segments, ledger = Segments(shape, pool.resources(CPU)), pool.ledger
    segments.ensure(3)
    key = torch.arange(2 * 16 * 8, dtype=torch.float32).to(torch.bfloat16)
    value = torch.arange(2 * 16 * 4, dtype=torch.float32).to(torch.bfloat16)
    place = segments.write(*(memoryview(bytearray(t.view(torch.uint8).numpy().tobytes())) for t in (key, value)))
    handle, offset = segments.where(place, value=False)
    assert offset % 4096 == 0
    size = os.fstat(handle).st_size
    assert size == ledger.used.disk
    tensors = load(os.pread(handle, size, 0))
    assert torch.equal(tensors["key"][0].flatten(), key)
    assert torch.equal(tensors["value"][0].flatten(), value)
    assert os.fstat(handle).st_nlink == 0
    assert os.fstat(handle).st_mode & 0o777 == 0o600
    segments.drop(place)
    segments.trim(0)
    assert ledger.used.disk == 0


def test_places_of_a_file_that_went_are_given_again(tmp_path: Path) -> None:
    shape = Shape(1, 1, 1, 1, torch.float32, CPU)
    tuning = Tuning(first_segment_bytes=16, most_segment_bytes=32)  # two pages of eight bytes, then four
    pool = FastPool(KIVConfig(page_tokens=1, ram_bytes=0, spill_dir=tmp_path), tuning=tuning)
    segments, ledger = Segments(shape, pool.resources(CPU)), pool.ledger

    def write(number: int) -> int:
        place = segments.write(*(memoryview(bytearray(4 * [n])) for n in (number, number + 1)))
        held[place] = number
        return place

    def check() -> None:
        for place, number in held.items():
            for value in (False, True):
                buffer = memoryview(bytearray(4))
                segments.read([(*segments.where(place, value), buffer)])
                assert list(buffer) == 4 * [number + value]

    held = {}
    places = [write(number) for number in range(12)]
    assert len(held) == 12
    for place in places[2:6]:
        segments.drop(place)
        del held[place]
    files = ledger.used.disk
    segments.trim(0)
    assert ledger.used.disk < files
    check()
    assert {write(number) for number in range(20, 24)} <= {*places[2:6], places[-1] + 1, places[-1] + 2}
    assert len(held) == 12
    check()
    for place in held:
        segments.drop(place)
    segments.trim(0)
    assert ledger.used.disk == 0


def test_a_folder_that_is_missing_or_in_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KIVUsageError, match="existing folder"):
        folder_for(tmp_path / "none")
    assert not in_memory(str(tmp_path)) or in_memory(str(tmp_path.parent))
    monkeypatch.setattr("kiv_fast.tiers.folder.in_memory", lambda place: True)
    with pytest.raises(KIVUsageError, match="in memory"):
        folder_for(tmp_path)


def test_a_pool_without_a_ram_budget_needs_no_folder(config: KIVConfig, tmp_path: Path) -> None:
    store = FastPool(replace(config, spill_dir=tmp_path / "none")).layer_store()
    store.append(torch.zeros(1, 1, 100, 4), torch.zeros(1, 1, 100, 4))
    assert store.tokens().cold_disk == 0
