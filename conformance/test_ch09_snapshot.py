"""SPEC 9.7 and 9.8: the state of a store as numbers, and another store that takes it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kiv_reference import ReferencePool
from kiv_reference.errors import KIVBudgetError, KIVNonFiniteError, KIVShapeError, KIVUsageError
from kiv_reference.snapshot import UNSEEN, Snapshot

from .answers import same_bits
from .data import Shape
from .driver import Driver, drive
from .expect import refused, same_report
from .life_cycle import SAMPLED, TINY, recipes, scenarios, used
from .oracle_index import EVERY
from .strategies import configs
from .strategies import recipes as recipes_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from kiv_reference import KIVConfig

    from .data import Recipe
    from .strategies import Scenario
    from .target import Target


def snapshot_of(driver: Driver) -> Snapshot:
    """Return the snapshot of a store that has tokens."""
    snapshot = driver.store.snapshot()
    assert snapshot is not None, "a store with tokens"
    return snapshot


def states(snapshot: Snapshot, values: bool) -> torch.Tensor:
    """Return all keys or values ``[B, H, T, W]``."""
    recent, sinks = snapshot.value if values else snapshot.key, snapshot.config.sink_tokens
    pages = snapshot.read_pages(values, 0, len(snapshot.cold)).to(recent.device)
    cold = pages[torch.from_numpy(snapshot.pages).long()]  # [B, N, H, P, W]
    cold = cold.transpose(1, 2).flatten(2, 3) if snapshot.pages.size else recent[:, :, :0]
    return torch.cat([recent[:, :, :sinks], cold, recent[:, :, sinks:]], dim=2)


class Test_9_7_Snapshot:
    """A snapshot holds the tokens, their validity and the sampled queries, zeros where a position is invalid."""

    @given(scenario=scenarios())
    def test_it_is_the_state(self, target: Target, scenario: Scenario) -> None:
        driver = drive(target, scenario)
        snapshot, oracle = snapshot_of(driver), driver.oracle
        assert snapshot.length == oracle.length
        flags = torch.tensor(oracle.valid)
        seen = torch.ones_like(flags) if snapshot.valid is None else snapshot.valid.cpu()
        driver.scene.require(bool((seen == flags).all()), "9.7", "another validity", got=seen, expected=flags)
        for values, rows in ((False, oracle.keys), (True, oracle.values)):
            expected = torch.tensor(rows, dtype=torch.float64).masked_fill(~flags[:, None, :, None], 0)
            got = states(snapshot, values).cpu().double()
            same = same_bits(got, expected.to(snapshot.key.dtype).double())
            driver.scene.require(same, "9.7", "other keys or values", got=got, expected=expected)
        if snapshot.finite:
            driver.scene.require(bool(got.isfinite().all()), "9.7", "values that are no numbers", got=got)
        for b, row in enumerate(oracle.samples):
            for h, kept in enumerate(row):
                for number in range(snapshot.sampled.shape[2]):
                    queries = kept.get(EVERY * (number + 1) - 1)
                    mine = snapshot.sampled[b, h, number].cpu().double()
                    expected = torch.full_like(mine, UNSEEN)
                    if queries is not None:
                        expected = torch.tensor(queries, dtype=torch.float64).abs().amax(dim=0)
                    driver.scene.require(torch.equal(mine, expected), "9.7", "other samples", got=mine)

    @given(scenario=scenarios())
    def test_it_changes_nothing(self, target: Target, scenario: Scenario) -> None:
        driver = drive(target, scenario)
        before = driver.store.memory(), driver.store.tokens()
        snapshot_of(driver)
        after = driver.store.memory(), driver.store.tokens()
        driver.scene.require(before == after, "9.7", "a snapshot changed the store", got=after, expected=before)
        driver.again()

    @given(scenario=scenarios(), repeats=st.integers(2, 3))
    def test_each_page_is_there_once(self, target: Target, scenario: Scenario, repeats: int) -> None:
        driver = drive(target, scenario)
        driver.repeat_interleave(repeats)
        snapshot = snapshot_of(driver)
        numbers, first = np.unique(snapshot.pages.T, return_index=True)
        assert numbers.tolist() == list(range(len(snapshot.cold)))
        assert sorted(first) == first.tolist()

    def test_a_store_without_tokens_has_none(self, target: Target) -> None:
        driver = used(target)
        assert Driver(target, TINY).store.snapshot() is None
        driver.reset()
        assert driver.store.snapshot() is None


class Test_9_8_Restore:
    """A store that takes a snapshot answers as the one that it is from."""

    @given(scenario=scenarios(), extra=recipes(), n=st.integers(1, 9), more=st.integers(1, 3))
    def test_bit_for_bit(self, target: Target, scenario: Scenario, extra: Recipe, n: int, more: int) -> None:
        driver = drive(target, scenario)
        twin = driver.fork()
        twin.carry()
        tokens = extra.make(scenario.shape, n + more)
        for start, stop in ((0, n), (n, n + more)):
            part = tokens.slice(start, stop)
            answers: list[torch.Tensor] = []
            for one in (driver, twin):
                one.append(part)
                answers.append(one.attend(part.query, scenario.scale))
            same = same_bits(*answers)
            twin.scene.require(same, "9.8", "another answer", got=answers[1], expected=answers[0])
            same_report(driver, twin, "9.8")

    @given(scenario=scenarios(), extra=recipes(), part=st.floats(0, 1))
    def test_by_way_of_the_reference(self, target: Target, scenario: Scenario, extra: Recipe, part: float) -> None:
        driver = drive(target, scenario)
        driver.carry(ReferencePool(scenario.config))
        driver.crop(round(driver.oracle.length * part))
        tokens = extra.make(scenario.shape, 2)
        driver.append(tokens)
        driver.attend(tokens.query, scenario.scale)

    @given(
        config=configs(**SAMPLED),
        recipe=recipes_of(("gaussian", "spiky", "integers")),
        length=st.sampled_from([66, 80]),
        given=st.booleans(),
        through=st.booleans(),
    )
    def test_samples_go_along(
        self, target: Target, config: KIVConfig, recipe: Recipe, length: int, given: bool, through: bool
    ) -> None:
        """Those that there are weigh channels of pages that become cold after it; those that there are not do not."""
        driver, shape = Driver(target, config), Shape(groups=2, width=5)
        tokens = recipe.make(shape, 98)
        for start, stop in ((0, 63), (63, 64), (64, length), (length, 97), (97, 98)):
            if start == length:
                driver.carry(ReferencePool(config) if through else None)
            if start < stop:
                driver.append(tokens.slice(start, stop))
            if stop in (98, 64 if given else length):  # an attend of later tokens passes over the sampled one
                driver.attend(tokens.query[:, :, start:stop], 0.5)

    def test_an_attend_needs_an_append(self, target: Target) -> None:
        driver = used(target)
        driver.carry()
        for count in (1, 12):
            refused(driver, KIVUsageError, "9.1", "attend", query=torch.ones(2, 2, count, 4), scale=1.0)
        with pytest.raises(KIVUsageError):
            _ = driver.store.report

    def test_a_store_with_tokens_refuses(self, target: Target) -> None:
        driver = used(target)
        refused(driver, KIVUsageError, "9.8", "restore", snapshot=snapshot_of(driver))

    @pytest.mark.parametrize("name", ["device_bytes", "ram_bytes"])
    def test_budgets_hold(self, target: Target, name: str) -> None:
        driver = Driver(target, dataclasses.replace(TINY, **{name: 8, "disk_bytes": 0}))
        refused(driver, KIVBudgetError, "9.8", "restore", snapshot=snapshot_of(used(target)))

    @pytest.mark.parametrize("name", ["hot_tokens", "sink_tokens", "page_tokens", "index_channels"])
    def test_other_rules_are_refused(self, target: Target, name: str) -> None:
        config = dataclasses.replace(TINY, **{name: getattr(TINY, name) + 1})
        message = refused(Driver(target, config), KIVUsageError, "9.8", "restore", snapshot=snapshot_of(used(target)))
        assert name in message

    def test_whatever_else_may_be_other(self, target: Target) -> None:
        config = dataclasses.replace(TINY, retrieve_tokens=None, tail="none")
        driver = Driver(target, config)
        driver.store.restore(snapshot_of(used(target)))
        assert driver.store.length == 12

    @pytest.mark.parametrize(
        ("error", "change"),
        [
            (KIVShapeError, lambda s: {"key": s.key[0]}),
            (KIVShapeError, lambda s: {"key": s.key.to(torch.int32)}),
            (KIVShapeError, lambda s: {"value": s.value[:, :, 1:]}),
            (KIVShapeError, lambda s: {"value": s.value.double()}),
            (KIVShapeError, lambda s: {"key": s.key[:, :, :2], "value": s.value[:, :, :2]}),
            (KIVShapeError, lambda s: {"pages": s.pages[:1]}),
            (KIVShapeError, lambda s: {"pages": s.pages + len(s.cold)}),
            (KIVShapeError, lambda s: {"pages": s.pages - 1}),
            (KIVShapeError, lambda s: {"pages": np.concatenate([s.pages, s.pages], axis=1)}),
            (KIVShapeError, lambda s: {"sampled": s.sampled.double()}),
            (KIVShapeError, lambda s: {"sampled": s.key[:, :, :1].abs()}),
            (KIVShapeError, lambda s: {"sampled": s.sampled[:1]}),
            (KIVShapeError, lambda s: {"valid": torch.ones(2, 11, dtype=torch.bool)}),
            (KIVShapeError, lambda s: {"valid": torch.ones(2, 12)}),
            (KIVNonFiniteError, lambda s: {"key": s.key.masked_fill(s.key > 0, torch.nan)}),
        ],
    )
    def test_parts_that_do_not_fit(
        self, target: Target, error: type[Any], change: Callable[[Snapshot], dict[str, Any]]
    ) -> None:
        snapshot = snapshot_of(used(target))
        broken = dataclasses.replace(snapshot, **change(snapshot))
        refused(Driver(target, TINY), error, "9.8", "restore", snapshot=broken)
