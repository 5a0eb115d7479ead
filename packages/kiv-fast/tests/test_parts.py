"""Parts that no answer of a short text depends on: ids in any order, the second of two tiles, rounding, room."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from fast_helpers import SCALE, assert_close, draw, feed, index_bytes, state_of
from kiv_fast import FastPool, Tuning
from kiv_fast.device.gather import Gather
from kiv_fast.device.transfer import Transfer
from kiv_fast.memory import growable_table
from kiv_fast.memory.growable_table import Table
from kiv_fast.memory.ledger import Account, Ledger
from kiv_fast.memory.pinning import LEAST_BYTES, Region, SlabPinning
from kiv_fast.pages.block_table import BlockTable, integers
from kiv_fast.retrieval.bound import round_up
from kiv_fast.shape import ALIGNMENT, aligned
from kiv_fast.tiers.file_io import FileIO
from kiv_reference import KIVConfig, ReferencePool
from kiv_reference.errors import KIVBudgetError
from simulated_device import DEVICE
from simulated_streams import Runtime

if TYPE_CHECKING:
    from pathlib import Path


def test_exact_attention_over_pages_that_lie_anywhere(config: KIVConfig) -> None:
    """A row that was selected keeps its high ids, and gets the low ones that the other left; some are padding."""
    store = FastPool(replace(config, retrieve_tokens=None)).layer_store()
    key, value, query = draw(1, 200, batch=2, dtype=torch.float64)
    valid = torch.rand(2, 200, generator=torch.Generator().manual_seed(1)) < 0.7
    store.append(key[:, :, :100], value[:, :, :100], valid[:, :100])
    store.attend(query[:, :, :100], scale=SCALE)
    store.select(torch.tensor([1]))
    key, value, query, valid = (part[1:] for part in (key, value, query, valid))
    for start, stop in ((100, 160), (160, 199), (199, 200)):
        store.append(key[:, :, start:stop], value[:, :, start:stop], valid[:, start:stop])
        output = store.attend(query[:, :, start:stop], scale=SCALE)
    pages = list(state_of(store).rows[0].pages)
    assert pages != sorted(pages)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query[:, :, 199:], key, value, valid[:, None, None], scale=SCALE, enable_gqa=True
    )
    assert_close(output, expected)


def test_flags_that_were_handed_out_may_be_changed(config: KIVConfig) -> None:
    store = FastPool(config).layer_store()
    valid = torch.arange(20)[None] != 5
    key, value, _ = draw(13, 20)
    store.append(key, value, valid)
    given = store.valid
    assert given is not None
    given.fill_(False)
    assert store.valid is not None
    assert torch.equal(store.valid, valid)


def test_a_device_reads_registered_memory_alone() -> None:
    def mapped(tensor: torch.Tensor, address: int) -> torch.Tensor:
        raise AssertionError("the device was given an address that it does not know")

    table = Table((2,), torch.float32, torch.device("cpu"))
    table.ensure(4)
    table.tensor[:4] = torch.arange(8.0).view(4, 2)
    found = Gather(Transfer(), mapped).rows(table, torch.tensor([3, 1]))
    assert found.tolist() == [[6, 7], [2, 3]]


def test_the_buffers_of_a_step_are_booked(config: KIVConfig, tmp_path: Path) -> None:
    """Those that a decode step reads keys and values into."""
    config = replace(config, candidate_tokens=64, retrieve_tokens=40, ram_bytes=60_000, spill_dir=tmp_path)
    pool = FastPool(config, ops="torch")
    store = pool.layer_store()
    feed(store, draw(4, 204, dtype=torch.bfloat16), [200, *[1] * 4])
    used = sum(buffer.nbytes for buffer in pool.scratch._buffers.values())
    assert 0 < used <= pool.scratch.nbytes <= pool.memory().device


def test_a_page_has_its_room_on_disk(tmp_path: Path) -> None:
    """So that a full disk shows when room is made, and not in the write of a page."""
    io = FileIO()
    handle = io.create(os.fspath(tmp_path))
    try:
        io.allocate(handle, 0, 1 << 20)
        status = os.fstat(handle)
        assert status.st_size == 1 << 20 <= 512 * status.st_blocks
    finally:
        io.close(handle)


def test_tiles_of_a_repeated_call_are_not_overwritten(config: KIVConfig, tmp_path: Path) -> None:
    """What has left the hot window meanwhile is read from disk, tile by tile, into the same memory."""
    config = replace(config, hot_tokens=24, prefill="retrieve", query_block_tokens=32, exact_suffix_tokens=0)
    tuning = Tuning(tile_tokens=8)
    whole = FastPool(config, tuning=tuning).layer_store()
    key, value, query = draw(5, 150)
    feed(whole, (key, value, query), [118, 32])
    small = replace(config, ram_bytes=index_bytes(whole) + 2_500, spill_dir=tmp_path)
    store = FastPool(small, tuning=tuning).layer_store()
    feed(store, (key, value, query), [118])
    store.append(key[:, :, 118:], value[:, :, 118:])
    first = store.attend(query[:, :, 118:], scale=SCALE)
    assert store.tokens().cold_disk > 100
    assert torch.equal(store.attend(query[:, :, 118:], scale=SCALE), first)


def test_a_share_is_never_rounded_down() -> None:
    """A bound that is less than the share that it bounds by one rounding is no bound (SPEC 6.2)."""
    shares = torch.rand(10_000, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    assert bool((round_up(shares).double() >= shares).all())
    assert bool((round_up(shares) <= 1).all())


@pytest.mark.parametrize(("limit", "far", "streamed"), [(1 - 1e-9, 0.0, True), (1e-50, -200.0, False)])
def test_limits_that_float32_does_not_hold(limit: float, far: float, streamed: bool) -> None:
    """Of two channels only the one is coded at which the query does not look; and in float32 the limits are 1 and 0."""
    sizes: dict[str, Any] = {"hot_tokens": 0, "sink_tokens": 0, "page_tokens": 4, "index_channels": 1}
    config = KIVConfig(**sizes, candidate_tokens=2, retrieve_tokens=1, max_missed_mass=limit)
    key = torch.zeros(1, 1, 21, 2)
    key[0, 0, :20, 0] = torch.tensor([-100.0, 100.0]).repeat(10)
    key[0, 0, 8:20, 1] = torch.tensor([-60.0, 0.0, 0.0, 59.0]).repeat(3)  # its error makes the bound 1
    key[0, 0, :20, 1] += far
    query = torch.tensor([0.0, 1.0])[None, None, None]
    for pool in (ReferencePool(config), FastPool(config)):
        store = pool.layer_store()
        store.append(key[:, :, :20], torch.ones(1, 1, 20, 3))
        store.append(key[:, :, 20:], torch.ones(1, 1, 1, 3))
        store.attend(query, scale=1.0)
        assert store.report.blocks[0].streamed.item() is streamed


@pytest.mark.parametrize("tier", ["device", "ram", "disk"])
def test_the_last_byte_of_a_budget_is_the_last(tier: str) -> None:
    limit: dict[str, Any] = {f"{tier}_bytes": 10}
    ledger = Ledger(KIVConfig(**limit))
    account = Account(ledger)
    account.take(**{tier: 7})
    with pytest.raises(KIVBudgetError, match=r"11 bytes"):
        account.take(**{tier: 4})
    assert getattr(ledger.used, tier) == 7
    account.take(**{tier: 3})


def test_numbers_begin_where_torch_puts_them() -> None:
    whole = torch.arange(65.0)
    for start in range(4):
        part = whole[start:]
        assert torch.equal(aligned(part), part)
        assert aligned(part).data_ptr() % ALIGNMENT == 0


@pytest.mark.parametrize("pages", [1, 2, 3, 4, 5, 6])
def test_keys_of_candidates_are_read_in_chunks(config: KIVConfig, pages: int) -> None:
    """Twenty candidates, a few at a time: the last chunk may be smaller; and the codes of some pages at a time."""
    tuning = Tuning(chunk_bytes=pages * config.page_tokens * 2 * 16 * 8, kept_bytes=0)
    data = draw(8, 120, dtype=torch.float64)
    expected = feed(ReferencePool(config).layer_store(), data, [100, *[1] * 20])
    assert_close(feed(FastPool(config, tuning=tuning).layer_store(), data, [100, *[1] * 20]), expected)


def test_tables_that_double(config: KIVConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system reserves no addresses, and there are more pages than a first table has room for."""
    data = draw(11, 420)
    expected = feed(FastPool(config).layer_store(), data, [200, 200, *[1] * 20])
    monkeypatch.setattr(growable_table, "reserve", lambda *arguments: None)
    store = FastPool(config).layer_store()
    assert torch.equal(feed(store, data, [200, 200, *[1] * 20]), expected)
    assert state_of(store).pages > growable_table.FIRST_RECORDS


def test_pages_that_a_step_saw_before_their_table_grew(config: KIVConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are cut, and others written in their place, where the table was copied to."""
    monkeypatch.setattr(growable_table, "reserve", lambda *arguments: None)
    old, new = draw(11, 420), draw(12, 101)
    mixed = [torch.cat([a[:, :, :60], b[:, :, 60:]], dim=2) for a, b in zip(old, new, strict=True)]
    store, fresh = (FastPool(config, ops="torch").layer_store() for _ in range(2))
    feed(store, old, [100, 1, 319])
    store.crop(60)
    output = feed(store, [part[:, :, 60:] for part in new], [40, 1])
    assert torch.equal(output, feed(fresh, mixed, [60, 40, 1])[:, :, 60:])


def test_a_copy_of_a_row_shares_no_list() -> None:
    row = BlockTable(integers([1]), integers([2]), 1, 1, True)
    copy = row.copy()
    for name, value in vars(row).items():
        if isinstance(value, np.ndarray):
            assert list(vars(copy)[name]) == list(value), name
            assert vars(copy)[name] is not value, name
        else:
            assert vars(copy)[name] == value, name
    row.pages[0] = 7
    row.counts[0] = 8
    assert (list(copy.pages), list(copy.counts)) == ([1], [2])


def test_slabs_of_a_table_that_went_may_be_pinned_again(recwarn: pytest.WarningsRecorder) -> None:
    pinning = SlabPinning(Runtime(DEVICE), LEAST_BYTES)
    for _ in range(3):
        region = Region(0, 8 * LEAST_BYTES)
        pinning.cover(region, LEAST_BYTES)
        assert region.pinned == LEAST_BYTES
        pinning.release(region)
    assert not recwarn.list


def test_pages_of_the_second_sequence_by_torch(config: KIVConfig) -> None:
    """They are consecutive, and do not begin with the first page of all."""
    key, value, query = (torch.cat([draw(seed, 100)[part] for seed in (1, 2)]) for part in range(3))
    both = feed(FastPool(config, ops="torch").layer_store(), (key, value, query), [90, *[1] * 10])
    for row in (0, 1):
        alone = tuple(part[row : row + 1] for part in (key, value, query))
        one = feed(FastPool(config, ops="torch").layer_store(), alone, [90, *[1] * 10])
        torch.testing.assert_close(both[row : row + 1], one, rtol=1e-4, atol=1e-5)
