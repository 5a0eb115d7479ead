"""SPEC chapter 8: modifiers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kiv_reference.errors import KIVError

from .driver import Driver, drive
from .expect import refused
from .oracle_index import EVERY
from .strategies import SCALES, Scenario, configs, scenarios, shapes

if TYPE_CHECKING:
    from .target import Target


class Test_8_1_Softcap:
    """A soft cap applies to every logit, of tokens, pseudo-tokens and bounds, and to no ranking."""

    @given(scenario=scenarios(softcap=st.sampled_from([0.1, 1.0, 5.0, 50.0]), scale=st.sampled_from(SCALES)))
    def test_caps(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)

    @pytest.mark.parametrize("bad", [{"softcap": 0.0}, {"softcap": -1.0}, {"scale": 0.0}, {"scale": float("nan")}])
    @given(scenario=scenarios())
    def test_bad_numbers(self, target: Target, bad: dict[str, float], scenario: Scenario) -> None:
        driver = drive(target, scenario)
        query = driver.attended.query
        arguments: dict[str, Any] = {"query": query, "scale": 0.5, **bad}
        refused(driver, KIVError, "8.1", "attend", **arguments)


class Test_8_2_SinkLogits:
    """Learned sink logits join the denominator without a value, and count as exact mass."""

    @pytest.mark.parametrize("form", ["head", "query"])
    @given(data=st.data())
    def test_forms(self, target: Target, form: str, data: st.DataObject) -> None:
        drive(target, data.draw(scenarios(sinks=form, shape=shapes(groups=st.integers(1, 3), width=8))))

    @given(scenario=scenarios(sinks="head"))
    def test_bad_forms(self, target: Target, scenario: Scenario) -> None:
        driver = drive(target, scenario)
        query, arguments, *_ = driver.attended
        bad: dict[str, Any] = {**arguments, "sink_logits": torch.zeros(query.shape[1] + 1)}
        refused(driver, KIVError, "8.2", "attend", query=query, **bad)


class Test_8_3_SharedLayers:
    """Several attends after one append each retrieve with their own query, and leave each other's answers alone."""

    @given(scenario=scenarios(config=configs(hot_tokens=st.integers(0, 4))), turns=st.integers(1, 3))
    def test_several_attends(self, target: Target, scenario: Scenario, turns: int) -> None:
        driver: Driver = drive(target, scenario)
        first = driver.attended
        query, arguments, *_ = first
        for turn in range(turns):
            driver.attend(query.roll(turn + 1, dims=3) * 0.5, **arguments)
        driver.last = first
        driver.again()

    @given(
        scenario=scenarios(
            config=configs(
                hot_tokens=st.integers(60, 66),  # so that every page becomes cold after the sample
                candidate_tokens=st.integers(1, 4),
                index_channels=1,
                tail="mean",
                max_missed_mass=None,
            ),
            shape=shapes(batch=1, width=st.sampled_from([4, 5])),
            kinds=("gaussian", "spiky", "integers"),
            mask_kind="none",
            sinks="none",
            calls=st.lists(st.integers(1, 3), min_size=1, max_size=1),
        ),
        more=st.integers(20, 60),
    )
    def test_the_first_of_them_is_sampled(self, target: Target, scenario: Scenario, more: int) -> None:
        """Of several attends after the append that holds position 63, the first weighs channels (SPEC 3.2)."""
        n = scenario.chunks[-1][0]
        tokens = scenario.recipe.make(scenario.shape, EVERY + more)
        driver = Driver(target, scenario.config)
        driver.append(tokens.slice(0, EVERY - n))
        driver.append(tokens.slice(EVERY - n, EVERY))
        for turn in range(3):
            driver.attend(tokens.query[:, :, EVERY - n : EVERY].roll(turn, dims=3) * 2**turn, scenario.scale)
        driver.append(tokens.slice(EVERY, EVERY + more))
        driver.attend(tokens.query[:, :, EVERY:], scenario.scale)
        driver.append(tokens.slice(0, 1))
        driver.attend(tokens.query[:, :, :1], scenario.scale)

    @given(scenario=scenarios(), heads=st.integers(1, 3))
    def test_another_number_of_query_heads(self, target: Target, scenario: Scenario, heads: int) -> None:
        driver = drive(target, scenario)
        query = driver.attended.query
        driver.attend(query[:, :1].repeat(1, heads * scenario.shape.heads, 1, 1), scenario.scale, scenario.softcap)
