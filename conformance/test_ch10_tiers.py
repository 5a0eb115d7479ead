"""SPEC chapter 10: tiers, budgets, errors."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from kiv_reference import KIVConfig, errors
from kiv_reference.errors import KIVBudgetError, KIVConfigError, KIVError, KIVNonFiniteError, KIVUsageError

from .data import Recipe, Shape
from .driver import Driver, drive
from .expect import refused, replays_alike
from .strategies import Scenario, configs, scenarios, shapes

if TYPE_CHECKING:
    from .target import Target


class Test_10_1_Placement:
    """The same calls under other budgets give the same bits."""

    @given(scenario=scenarios(config=configs(hot_tokens=st.integers(0, 4))))
    def test_other_budgets(self, target: Target, scenario: Scenario) -> None:
        driver = drive(target, scenario)
        held = replays_alike(target, driver)
        driver.scene.require(held >= 1, "10.2", "ample budgets were refused")

    @given(scenario=scenarios(), other=scenarios(most=20))
    def test_a_store_beside_others(self, target: Target, scenario: Scenario, other: Scenario) -> None:
        alone = drive(target, scenario)
        neighbour = drive(target, dataclasses.replace(other, config=scenario.config, exact_population=False))
        driver = Driver(target, scenario.config, pool=neighbour.pool)
        outputs = driver.run(scenario)
        for a, b in zip(alone.operations.outputs, outputs, strict=True):
            same = bool(((a == b) | (a.isnan() & b.isnan())).all())
            driver.scene.require(same, "10.1", "a neighbour changed an output")
        neighbour.again()


class Test_10_2_Budgets:
    """A budget is never exceeded: what cannot fit is refused before anything changes."""

    @given(scenario=scenarios(), n=st.integers(1, 40))
    def test_a_full_pool_refuses_and_goes_on(self, target: Target, scenario: Scenario, n: int) -> None:
        first = drive(target, scenario)
        peak, s = first.pool.memory(), scenario.shape
        # While a call runs, all of its tokens are on the device, in the dtype of computation (SPEC 2.3).
        call = first.store.length * s.batch * s.heads * (s.width + s.value_width) * max(4, s.dtype.itemsize)
        config = dataclasses.replace(
            scenario.config,
            device_bytes=2 * peak.device + call + 4096,
            ram_bytes=peak.ram + 64,
            disk_bytes=peak.disk + 64,
        )
        limits = (config.device_bytes, config.ram_bytes, config.disk_bytes)
        driver = Driver(target, config)
        driver.run(dataclasses.replace(scenario, config=config))
        for turn in range(30):
            tokens = Recipe("gaussian", turn).make(scenario.shape, 20 * n)
            held = driver.pool.memory()
            fits = all(limit is None or have <= limit for have, limit in zip(held, limits, strict=True))
            driver.scene.require(fits, "10.2", "a budget is exceeded", got=held, budgets=limits)
            try:
                driver.store.append(tokens.key, tokens.value)
            except KIVBudgetError:
                event("a full pool")
                refused(driver, KIVBudgetError, "10.2", "append", key=tokens.key, value=tokens.value)
                return
            driver.last = None
            driver.oracle.append(tokens.key.tolist(), tokens.value.tolist(), None)
        raise driver.scene.mismatch("10.2", "tokens without end fitted into a budget", budgets=limits)

    def test_no_room_at_all(self, target: Target) -> None:
        driver = Driver(target, KIVConfig(device_bytes=0, ram_bytes=0, disk_bytes=0))
        tokens = Recipe("gaussian", 0).make(Shape(), 1)
        refused(driver, KIVBudgetError, "10.2", "append", key=tokens.key, value=tokens.value)


class Test_10_3_Memory:
    """The parts of a store add up to its length, and what it does not hold is not counted."""

    @given(scenario=scenarios(), more=st.integers(1, 20))
    def test_bytes(self, target: Target, scenario: Scenario, more: int) -> None:
        driver = drive(target, scenario)
        held, s = driver.store.memory(), scenario.shape
        token = s.heads * (s.width + s.value_width) * s.dtype.itemsize * s.batch
        least = driver.store.length * token
        driver.scene.require(sum(held) >= least, "10.3", "fewer bytes than the tokens have", got=held, least=least)
        pool = driver.pool.memory()
        inside = all(a <= b for a, b in zip(held, pool, strict=True))
        driver.scene.require(inside, "10.3", "a store holds more than its pool", got=held, pool=pool)
        driver.reset()
        driver.scene.require(sum(driver.store.memory()) == 0, "10.3", "an empty store holds bytes")

    @pytest.mark.parametrize("hot_tokens", [0, 80])
    @given(data=st.data(), shape=shapes(width=8))
    def test_sampled_queries_take_ram(self, target: Target, hot_tokens: int, data: st.DataObject, shape: Shape) -> None:
        driver = Driver(target, data.draw(configs(hot_tokens=hot_tokens)))
        tokens = Recipe("gaussian", 3).make(shape, 65)
        for start, stop in ((0, 63), (63, 64), (64, 65)):
            driver.append(tokens.slice(start, stop))
            if start:
                driver.attend(tokens.query[:, :, start:stop], 0.5)
        rows = shape.batch * shape.heads * shape.dtype.itemsize
        held, cold = driver.store.memory(), driver.store.tokens().cold_ram
        least = rows * (cold * (shape.width + shape.value_width) + shape.width)
        driver.scene.require(held.ram >= least, "10.3", "fewer bytes than sampled queries have", got=held, least=least)

    @given(config=configs(), n=st.integers(1, 60), shape=shapes(width=8))
    def test_tokens_in_tiers(self, target: Target, config: KIVConfig, n: int, shape: Shape) -> None:
        driver = Driver(target, config)
        driver.append(Recipe("gaussian", n).make(shape, n))
        parts = driver.store.tokens()
        driver.scene.require(sum(parts) == n, "10.3", "the parts do not add up", got=parts)
        cold = parts.cold_ram + parts.cold_disk
        beyond = sum(driver.store.memory()) > driver.store.memory().device
        driver.scene.require((cold > 0) == beyond or cold == 0, "10.3", "cold tokens in no tier", got=parts)


class Test_10_4_Errors:
    """Every refusal is a KIVError and a builtin error, says rule, value and remedy, and leaves the store as it was."""

    def test_every_error_is_also_a_builtin(self) -> None:
        kinds = [
            e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, KIVError) and e is not KIVError
        ]
        assert len(kinds) >= 6
        for kind in kinds:
            assert any(base.__module__ == "builtins" and base is not Exception for base in kind.__mro__[2:-3]), kind

    @given(scenario=scenarios(mask_kind="none"), what=st.sampled_from(["key", "queries", "crop", "rows", "shape"]))
    def test_after_an_error_all_goes_on(self, target: Target, scenario: Scenario, what: str) -> None:
        driver = drive(target, scenario)
        tokens = scenario.recipe.make(scenario.shape, 3)
        query, arguments, *_ = driver.attended
        if what == "key":
            bad = tokens.key.clone()
            bad[-1, -1, -1, -1] = torch.nan
            refused(driver, KIVNonFiniteError, "10.4", "append", key=bad, value=tokens.value)
        elif what == "queries":
            wide = torch.cat([query, query[:, :, :1]], dim=2)
            refused(driver, KIVUsageError, "10.4", "attend", query=wide, scale=0.5)
        elif what == "crop":
            refused(driver, KIVUsageError, "10.4", "crop", length=driver.oracle.length + 1)
        elif what == "rows":
            refused(driver, KIVUsageError, "10.4", "select", rows=torch.tensor([len(driver.oracle.valid)]))
        else:
            refused(driver, KIVError, "10.4", "append", key=tokens.key[..., :-1], value=tokens.value)
        driver.append(tokens)
        driver.attend(tokens.query, arguments["scale"])

    @pytest.mark.parametrize(
        "bad",
        [
            {"hot_tokens": -1},
            {"page_tokens": 0},
            {"group": "mean"},
            {"index_channels": 0},
            {"candidate_tokens": 0},
            {"tail": "all"},
        ],
    )
    def test_a_bad_configuration(self, bad: dict[str, Any]) -> None:
        with pytest.raises(KIVConfigError, match=next(iter(bad))):
            KIVConfig(**bad)

    @given(scenario=scenarios())
    def test_a_closed_pool(self, target: Target, scenario: Scenario) -> None:
        driver = drive(target, scenario)
        driver.pool.close()
        tokens = scenario.recipe.make(scenario.shape, 1)
        with pytest.raises(KIVUsageError):
            driver.store.append(tokens.key, tokens.value)
        with pytest.raises(KIVUsageError):
            driver.pool.layer_store()
