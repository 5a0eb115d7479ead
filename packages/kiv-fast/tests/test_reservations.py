"""What has reserved room is not refused it later, and what is refused changes nothing (SPEC 10.2, 10.4)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest
import torch
from fast_helpers import SCALE, draw, feed, state_of
from kiv_fast import FastPool
from kiv_fast.tiers.window import Recent
from kiv_reference.errors import KIVBudgetError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from kiv_reference import KIVConfig


def part(data: Sequence[torch.Tensor], start: int, stop: int) -> tuple[torch.Tensor, ...]:
    return tuple(tensor[:, :, start:stop] for tensor in data)


def test_the_reservation_of_one_store_outlives_that_of_its_fork(config: KIVConfig, tmp_path: Path) -> None:
    """A store and its fork wait with their last tokens; whatever budget accepted them must hold what they make cold."""
    key, value, query = draw(1, 120)

    def play(pool: FastPool) -> Any:
        one = pool.layer_store()
        one.append(key[:, :, :60], value[:, :, :60])
        other = one.fork()
        other.append(key[:, :, 60:], value[:, :, 60:])
        return one, other

    expected = [store.attend(query[:, :, -store.length :][:, :, -60:], scale=SCALE) for store in play(FastPool(config))]
    held = 0
    budgets = range(2_000, 80_000, 1_500)
    for budget in budgets:
        pool = FastPool(replace(config, ram_bytes=budget, spill_dir=tmp_path))
        try:
            stores = play(pool)
        except KIVBudgetError:
            continue
        held += 1
        for store, right in zip(stores, expected, strict=True):
            assert torch.equal(store.attend(query[:, :, -store.length :][:, :, -60:], scale=SCALE), right)
        pool.close()
        assert pool.memory() == (0, 0, 0)
    assert 0 < held < len(budgets)


@pytest.mark.parametrize("tier", ["device_bytes", "ram_bytes", "a crop"])
def test_what_is_refused_makes_no_page_cold(config: KIVConfig, tier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of a prompt that was not attended yet are coded by its queries, which an attend brings later (SPEC 3.2)."""
    config = replace(config, prefill="retrieve", query_block_tokens=8, exact_suffix_tokens=0)
    data = draw(5, 200)
    pool = FastPool(config)
    tight, free = pool.layer_store(), FastPool(config).layer_store()
    for store in (tight, free):
        feed(store, part(data, 0, 40), [40])
        store.append(*part(data, 40, 110)[:2])
    held = pool.memory()
    if tier == "a crop":
        monkeypatch.setattr(Recent, "cropped", Mock(side_effect=torch.OutOfMemoryError("injected")))
        with pytest.raises(torch.OutOfMemoryError, match="injected"):
            tight.crop(100)
    else:
        pool.ledger._limits = (held.device, None, None) if tier == "device_bytes" else (None, held.ram, None)
        with pytest.raises(KIVBudgetError, match=tier):
            tight.append(*part(data, 110, 200)[:2])
    assert pool.memory() == held
    pool.ledger._limits = None, None, None
    for start, stop in ((40, 110), (110, 130)):
        if start > 40:
            for store in (tight, free):
                store.append(*part(data, start, stop)[:2])
        assert torch.equal(*(store.attend(part(data, start, stop)[2], scale=SCALE) for store in (tight, free)))
        for mine, right in zip(tight.report.blocks, free.report.blocks, strict=True):
            assert torch.equal(mine.candidate_positions, right.candidate_positions)


def test_evicted_pages_leave_the_disk_reserved_by_others(config: KIVConfig, tmp_path: Path) -> None:
    """A store waits with its last tokens; another needs RAM, for which pages of the first must go to disk."""
    data, others = draw(1, 160), draw(2, 160)

    def play(pool: FastPool) -> Any:
        waiting = pool.layer_store()
        feed(waiting, part(data, 0, 100), [100])
        waiting.append(*part(data, 100, 160)[:2])
        return waiting

    expected = play(FastPool(config)).attend(data[2][:, :, 100:], scale=SCALE)
    refused = 0
    for disk in range(44_000, 46_000, 250):
        pool = FastPool(replace(config, ram_bytes=18_000, disk_bytes=disk, spill_dir=tmp_path))
        waiting = play(pool)
        try:
            feed(pool.layer_store(), others, [40] * 4)
        except KIVBudgetError:
            refused += 1
        assert torch.equal(waiting.attend(data[2][:, :, 100:], scale=SCALE), expected)
        pool.close()
    assert refused > 0


def test_a_step_whose_tokens_were_taken_in_has_room_for_its_pages(config: KIVConfig, tmp_path: Path) -> None:
    data, chunks = draw(1, 300), [200, *[1] * 100]
    expected, refused = feed(FastPool(config).layer_store(), data, chunks), 0
    for ram in range(30_000, 50_000, 4_000):
        for disk in range(10_000, 60_000, 2_000):
            pool = FastPool(replace(config, ram_bytes=ram, disk_bytes=disk, spill_dir=tmp_path))
            store, start = pool.layer_store(), 0
            for n in chunks:
                key, value, query = part(data, start, start + n)
                try:
                    store.append(key, value)
                except KIVBudgetError:
                    refused += 1
                    break
                output = store.attend(query, scale=SCALE)
                assert torch.equal(output, expected[:, :, start : start + n])
                start += n
            pool.close()
    assert refused > 0


def test_a_crop_that_does_not_fit_changes_nothing(config: KIVConfig) -> None:
    """The hot window has eight tokens, in a buffer for sixteen, and would have 39, in a larger one."""
    data = draw(3, 202)
    pool = FastPool(replace(config, page_tokens=32))
    store = pool.layer_store()
    feed(store, data, [202])
    expected = store.attend(data[2], scale=SCALE)
    held = pool.memory()
    pool.ledger._limits = (held.device, None, None)
    with pytest.raises(KIVBudgetError, match="device_bytes"):
        store.crop(201)
    assert (pool.memory(), store.length) == (held, 202)
    assert torch.equal(store.attend(data[2], scale=SCALE), expected)
    pool.ledger._limits = (held.device + (40 - 16) * state_of(store).shape.token_bytes, None, None)
    store.crop(201)
    assert pool.memory().device <= pool.ledger._limits[0]


def test_a_crop_holds_no_more_than_its_tokens(config: KIVConfig) -> None:
    data = draw(3, 300)
    for length in range(0, 300, 9):
        pool, fresh = FastPool(config), FastPool(config)
        store, other = pool.layer_store(), fresh.layer_store()
        feed(store, data, [60] * 5)
        store.crop(length)
        if length:
            feed(other, part(data, 0, length), [length])
        held, least_held = store.memory(), other.memory()
        assert all(have <= enough for have, enough in zip(held, least_held, strict=True)), length
        assert pool.memory().ram == held.ram
