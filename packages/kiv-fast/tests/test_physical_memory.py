"""What a crop or a reset gives back the system has again: /proc/self/pagemap of the tables (SPEC 10.3)."""

from __future__ import annotations

import mmap
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from fast_helpers import draw, state_of
from kiv_fast import FastPool

if TYPE_CHECKING:
    from pathlib import Path

    from kiv_fast.memory.growable_table import Table
    from kiv_reference import KIVConfig

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

TOKENS = 24 * 160


def resident(tables: Any) -> int:
    """Count the bytes that the system holds for tables: neighbours in /proc/self/smaps are one entry, pages are not."""
    page, total = mmap.PAGESIZE, 0
    with open("/proc/self/pagemap", "rb", buffering=0) as pages:
        for table in tables:
            used = -(-table._used * table.record_bytes // page) + 512
            pages.seek(table.tensor.data_ptr() // page * 8)
            entries = memoryview(pages.read(used * 8)).cast("Q")
            total += sum(entry >> 63 for entry in entries) * page
    return total


@pytest.mark.parametrize("disk", [False, True], ids=["RAM", "disk"])
@pytest.mark.parametrize(("width", "heads", "page"), [(40, 3, 24), (16, 1, 4), (64, 2, 16), (33, 5, 7)])
def test_what_is_given_back_is_not_held(
    width: int, heads: int, page: int, disk: bool, config: KIVConfig, tmp_path: Path
) -> None:
    config = replace(config, page_tokens=page)
    if disk:
        config = replace(config, ram_bytes=24 << 20, spill_dir=tmp_path)
    store = FastPool(config).layer_store()
    key, value, _ = draw(1, TOKENS, heads=heads, width=width, value_width=width)

    def tables() -> list[Table]:
        cold = state_of(store).cold
        assert cold.index is not None
        return [cold.arena._key, cold.arena._value, *cold.index.tables, cold.index.error]

    def fill(first: int, stop: int) -> None:
        store.append(key[:, :, first:stop], value[:, :, first:stop])
        store.append(key[:, :, :1], value[:, :, :1])  # evicts what the one before made cold

    fill(0, TOKENS)
    mine = tables()
    pages = len(state_of(store).rows[0].pages)
    index = state_of(store).cold.index
    assert index is not None
    booked = pages * (index.device_bytes + index.ram_bytes + state_of(store).shape.token_bytes * page)
    assert resident(mine) >= 0.9 * booked
    store.crop(TOKENS // 3)
    kept = len(state_of(store).rows[0].pages)
    share = booked * kept / pages
    assert resident(mine) <= 1.1 * share + 8 * 2 * 4096  # the last memory pages of eight tables are shared
    fill(TOKENS // 3, TOKENS)
    first = state_of(store).rows[0].pages[:1].tolist()
    assert torch.equal(state_of(store).cold.arena.tile(first, slice(None))[0], key[0, :, 2 : 2 + page])
    store.reset()
    assert resident(mine) == 0
