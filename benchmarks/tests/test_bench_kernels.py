"""Kernels compiled ahead of time take of a card what the committed table says, and no more than it has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.ahead import CARDS, GEOMETRIES
from benchmarks.report import Result

pytest.importorskip("triton")

RESULTS = Path(__file__).resolve().parents[1] / "results"
KERNELS = {"append", "scan", "rank", "choose", "read", "widen", "attend", "combine"}


def test_the_compiler_says_what_the_table_says(tmp_path: Path) -> None:
    # A process of its own: in this one another test may have chosen the interpreter.
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks", "kernels", "--quick", "--out", str(tmp_path)]
    subprocess.run(command, check=True, env=env, cwd=RESULTS.parents[1], stdout=subprocess.DEVNULL)
    ((name, found),) = Result.read(tmp_path / "kernels.json").series.items()
    told = Result.read(RESULTS / "kernels.json")
    assert {**told.series[name], **found} == told.series[name]
    assert all({*kernels} == KERNELS for kernels in found.values())


@pytest.mark.parametrize("path", sorted(RESULTS.glob("kernels*.json")), ids=lambda path: path.stem)
def test_no_kernel_spills_on_nvidia_nor_takes_more_shared_memory_than_there_is(path: Path) -> None:
    told = Result.read(path)
    assert {*told.series} == {*GEOMETRIES}
    for cards in told.series.values():
        for card, kernels in cards.items():
            assert {*kernels} == KERNELS
            for registers, spilled, shared in kernels.values():
                assert 0 < registers <= 512
                assert shared <= CARDS[card].shared
                assert spilled == 0 or CARDS[card].backend != "cuda"
    assert {*CARDS} == {card for cards in told.series.values() for card in cards} or "triton" in path.stem
