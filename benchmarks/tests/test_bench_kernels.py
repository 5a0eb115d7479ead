"""Kernels compiled ahead of time take of a card what the committed table says, and no more than it has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.ahead import CARDS, GEOMETRIES, OLDEST
from benchmarks.kernels import TOGETHER
from benchmarks.report import Result

pytest.importorskip("triton")

RESULTS = Path(__file__).resolve().parents[1] / "results"
KERNELS = {"append", "scan", "rank", "choose", "read", "widen", "attend", "combine"}


def cells(path: Path) -> dict[tuple[str, str, str], tuple[int, ...]]:
    """Read registers, spills and KB of shared memory, by geometry, kernel and card."""
    found = {}
    for table in Result.read(path).tables:
        geometry = table.title.rpartition(": registers")[0]
        for kernel, _, *row in table.rows:
            for card, cell in zip(table.columns[2:], row, strict=True):
                found[geometry, str(kernel), card] = tuple(int(number) for number in str(cell).split(" / "))
    return found


def test_the_compiler_says_what_the_table_says(tmp_path: Path) -> None:
    # A process of its own: in this one another test may have chosen the interpreter.
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks", "kernels", "--quick", "--out", str(tmp_path)]
    subprocess.run(command, check=True, env=env, cwd=RESULTS.parents[1], stdout=subprocess.DEVNULL)
    found, told = cells(tmp_path / "kernels.json"), cells(RESULTS / "kernels.json")
    assert {kernel for _, kernel, _ in found} == KERNELS
    assert {place: told[place] for place in found} == found


def test_the_oldest_triton_has_room_too() -> None:
    """What it spills there, and how much, the table says: at most a few registers of a thread."""
    told = cells(RESULTS / "kernels_oldest.json")
    assert {*told} == {(TOGETHER, kernel, card) for kernel in KERNELS for card in OLDEST}
    assert Result.read(RESULTS / "kernels_oldest.json").settings["triton"].startswith("3.2.")
    for (_, _, card), (registers, spilled, shared) in told.items():
        assert 0 < registers <= 512
        assert 1024 * shared <= CARDS[card].shared
        assert spilled <= 16 or CARDS[card].backend != "cuda"


def test_no_kernel_spills_on_nvidia_nor_takes_more_shared_memory_than_there_is() -> None:
    told = cells(RESULTS / "kernels.json")
    assert {*told} == {(geometry, kernel, card) for geometry in GEOMETRIES for kernel in KERNELS for card in CARDS}
    for (_, _, card), (registers, spilled, shared) in told.items():
        assert 0 < registers <= 512
        assert 1024 * shared <= CARDS[card].shared
        assert spilled == 0 or CARDS[card].backend != "cuda"
