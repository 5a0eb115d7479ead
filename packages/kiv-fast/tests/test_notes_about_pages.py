"""What is noted about pages: a few bytes for each (SPEC 10.3), and no more work to look one up where there are many."""

from __future__ import annotations

import gc
import os
import sys
import tracemalloc
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import kiv_fast
import numpy as np
import pytest
import torch
from fast_helpers import SCALE, draw, state_of
from kiv_fast import FastPool
from kiv_fast.pages.block_table import IdPool, grown, integers, stripped

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import FrameType

    from kiv_fast.store import FastStore
    from kiv_reference import KIVConfig

SOURCES = os.path.dirname(kiv_fast.__file__)
HEADS, PAGE, BLOCK = 2, 4, 256


@pytest.fixture(params=[False, True], ids=["RAM", "disk"])
def store(request: pytest.FixtureRequest, config: KIVConfig, tmp_path: Path) -> FastStore:
    tiers = {"ram_bytes": 3_000_000, "spill_dir": tmp_path} if request.param else {}
    return FastPool(replace(config, page_tokens=PAGE, prefill="retrieve", **tiers)).layer_store()


def fill(store: FastStore, pages: int) -> int:
    key, value, _ = draw(1, PAGE, heads=HEADS)
    for _ in range(pages // 64):
        store.append(*(part.repeat(1, 1, 64, 1) for part in (key, value)))
    store.append(key[:, :, :1], value[:, :, :1])
    return len(state_of(store).rows[0].pages)


def look(store: FastStore) -> None:
    store.append(*draw(2, 1, heads=HEADS)[:2])
    store.attend(draw(3, 1, heads=HEADS)[2], scale=SCALE)


def traced() -> int:
    """Return bytes that lines of kiv_fast asked for: other threads of the process are not counted."""
    gc.collect()
    mine = tracemalloc.Filter(True, os.path.join(SOURCES, "*"))
    return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([mine]).traces)


def test_a_page_costs_a_few_bytes(store: FastStore) -> None:
    """Tables of records are mappings, which are not counted here: what is left is notes."""
    disk = store._pool.config.ram_bytes is not None
    tracemalloc.start()
    try:
        few = fill(store, 1024)
        before = traced()
        more = fill(store, 16384) - few
        grew = traced() - before
    finally:
        tracemalloc.stop()
    assert more == 16384
    # In RAM 8 in the row, 4 for its holders, and 8 flags; under a budget where it is, the page in each slot, and flags
    # of slots beside. Of a call Python keeps a few kilobytes.
    assert grew / more <= 20 + (15 if disk else 0) + 4


def lines(do: Callable[[], object]) -> int:
    """Tell how many lines of kiv_fast run."""
    seen = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal seen
        if not frame.f_code.co_filename.startswith(SOURCES):
            return None
        seen += event == "line"
        return trace

    sys.settrace(trace)
    try:
        do()
    finally:
        sys.settrace(None)
    return seen


def test_a_look_at_many_pages_runs_as_many_lines(store: FastStore) -> None:
    counts = []

    def look_at_the_same_pages() -> None:
        state_of(store).cold.arena.tile(list(range(8)), slice(None))
        state_of(store).cold.arena.keys(torch.arange(8).expand(HEADS, -1) * HEADS * PAGE)

    for pages in (4096, 8192):
        fill(store, pages)
        look(store)
        assert state_of(store).cold.arena.pages_on_disk(np.arange(8, dtype=np.int32)) in (0, 8)
        counts.append(lines(look_at_the_same_pages))
    assert counts[1] <= 1.2 * counts[0]


def test_free_ids_are_taken_from_the_lowest_on() -> None:
    ids = IdPool()
    assert ids.take(3 * BLOCK) == list(range(3 * BLOCK))
    gone = [3, BLOCK - 1, BLOCK, 2 * BLOCK + 7]
    assert ids.drop(reversed(gone)) == gone[::-1]
    assert ids.take(3) == gone[:3]
    assert ids.take(3) == [gone[3], 3 * BLOCK, 3 * BLOCK + 1]
    ids.drop(range(BLOCK + 1, 3 * BLOCK + 2))
    assert ids.used == BLOCK + 1
    assert ids.take(BLOCK) == list(range(BLOCK + 1, 2 * BLOCK + 1))
    ids.drop(range(2 * BLOCK + 1))
    assert ids.used == 0
    assert ids.take(2) == [0, 1]


def test_numbers_return_their_memory() -> None:
    numbers = grown(integers([3, 1]), 10_000, -1)
    assert (len(numbers), numbers[1], numbers[9_999]) == (10_000, 1, -1)
    kept = stripped(numbers, -1)
    assert kept.tolist() == [3, 1]
    assert kept.base is None
    assert not len(stripped(stripped(kept, 1), 3))
