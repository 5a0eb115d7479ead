"""The file of the disk tier: its room, its places, and the folder it lies in (SPEC 10.1, 10.2)."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import pytest
import torch
from faulty_disk import Faulty
from kiv_fast import FastPool
from kiv_fast.memory.ledger import Ledger
from kiv_fast.shape import Shape
from kiv_fast.tiers.folder import folder_for, in_memory
from kiv_fast.tiers.page_file import PageFile
from kiv_reference import KIVConfig
from kiv_reference.errors import KIVUsageError

if TYPE_CHECKING:
    from pathlib import Path

CPU = torch.device("cpu")
PAGE = 8

Made = tuple[PageFile, Ledger, Faulty]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """A file of pages of a key and a value of four bytes each, the ledger that it takes from, and its system calls."""
    io = Faulty()
    pool = FastPool(KIVConfig(page_tokens=1, ram_bytes=0, spill_dir=tmp_path), io)
    return PageFile(Shape(1, 1, 1, 1, torch.float32, CPU), pool.resources(CPU)), pool.ledger, io


def write(file: PageFile, number: int) -> int:
    return file.write(*(memoryview(bytearray(4 * [n])) for n in (number, number + 1)))


def read(file: PageFile, places: list[int], value: bool) -> list[int]:
    buffer = memoryview(bytearray(4 * len(places)))
    file.read(file.offsets(np.array(places, np.int64), value), 4 * np.arange(len(places)), 4, buffer)
    return list(buffer[::4])


def test_another_process_is_refused_even_if_it_needs_no_row(made: Made) -> None:
    """All that it asks for may be in RAM, read by its parent."""
    file, *_ = made
    write(file, 7)
    assert read(file, [], False) == []
    with mock.patch.object(os, "getpid", return_value=-1), pytest.raises(KIVUsageError, match="forked"):
        read(file, [], False)


def test_a_file_has_no_name_and_as_many_bytes_as_are_booked(made: Made) -> None:
    file, ledger, io = made
    file.ensure(3)
    write(file, 7)
    (handle,) = io.open
    status = os.fstat(handle)
    assert (status.st_size, status.st_nlink, status.st_mode & 0o777) == (3 * PAGE, 0, 0o600)
    assert ledger.used.disk == 3 * PAGE
    file.drop(0)
    file.trim(0)
    assert ledger.used.disk == 0
    assert not io.open


def test_places_are_given_again_and_the_end_is_cut(made: Made) -> None:
    file, ledger, _ = made
    held = {write(file, number): number for number in range(12)}
    assert list(held) == list(range(12))

    def check() -> None:
        for value in (False, True):
            assert read(file, list(held), value) == [number + value for number in held.values()]

    check()
    for place in (2, 3, 10, 11):
        file.drop(place)
        del held[place]
    file.trim(3)
    assert ledger.used.disk == 11 * PAGE
    file.trim(0)
    assert ledger.used.disk == 10 * PAGE
    check()
    for number, place in ((20, 2), (21, 3), (22, 10)):
        held[write(file, number)] = number
        assert list(held)[-1] == place
    check()
    for place in held:
        file.drop(place)
    file.trim(0)
    assert ledger.used.disk == 0


def test_what_could_not_be_cut_stays_booked(made: Made) -> None:
    file, ledger, io = made
    for number in range(3):
        write(file, number)
    file.drop(2)
    io.method, io.at = "truncate", 1
    with pytest.warns(RuntimeWarning, match="not cut: .*injected"):
        file.trim(0)
    assert ledger.used.disk == 3 * PAGE
    assert write(file, 5) == 2
    assert read(file, [0, 1, 2], False) == [0, 1, 5]


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
