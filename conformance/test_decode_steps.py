"""Decode steps of every kind in scenarios so short that an interpreter of device code can run them (SPEC 4, 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from .data import FLOAT_KINDS
from .driver import drive
from .expect import share
from .strategies import Scenario, configs, decode_only, scenarios, shapes

if TYPE_CHECKING:
    from .target import Target

PAGES: dict[str, Any] = {"page_tokens": st.sampled_from([4, 5, 8]), "hot_tokens": st.sampled_from([0, 1, 4, 8])}
"""Few pages: each is a program of an interpreter."""


def steps(exact_population: bool = False, **fixed: Any) -> st.SearchStrategy[Scenario]:
    """Draw a prompt that is not attended, and one step or two after it, without padding."""
    config = configs(exact_population, max_missed_mass=None, prefill="retrieve", **{**PAGES, **fixed.pop("config", {})})
    calls = decode_only(fixed.pop("steps", 1))
    shape = shapes(width=st.sampled_from([4, 5, 8, 16, 64]), **fixed.pop("shape", {}))
    return scenarios(exact_population, config=config, shape=shape, calls=calls, mask_kind="none", **fixed)


class TestDecodeSteps:
    """Steps of one query of each sequence."""

    @given(scenario=steps())
    def test_any_numbers(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)

    @given(scenario=steps(exact_population=True))
    def test_the_very_same_tokens_where_scores_are_exact(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)

    @share(0.5)
    @given(scenario=steps(kinds=tuple({"huge", "tiny", "denormal", "signed_zeros", "near_ties"} & {*FLOAT_KINDS})))
    def test_numbers_at_the_edges(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)

    @share(0.5)
    @given(scenario=steps(values=("infinite",), bad_values=st.integers(1, 9)))
    def test_values_that_are_no_numbers(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)

    @given(scenario=steps(steps=3, config={"hot_tokens": 0, "page_tokens": 4}, shape={"batch": 2}))
    def test_pages_that_leave_between_steps(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)
