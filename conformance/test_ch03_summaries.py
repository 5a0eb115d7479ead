"""SPEC chapter 3: summaries. They show in the ranking of pages and in the tail."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from .driver import drive
from .strategies import Scenario, configs, decode_only, scenarios
from .target import Target


class Test_3_1_Page:
    """A page's count, mean key, spread and mean value are those of its valid tokens; without any it has no summary."""

    @given(scenario=scenarios(exact_population=True, calls=decode_only()))
    def test_means_and_spreads_rank_pages(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)

    @given(scenario=scenarios(masks=("page", "ragged", "inside"), calls=decode_only()))
    def test_padding_in_pages(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)

    @given(scenario=scenarios(config=configs(tail="mean", candidate_pages=6, retrieve_tokens=1), calls=decode_only()))
    def test_mean_values_reach_the_tail(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)


class Test_3_2_Span:
    """A span's count and means are those of the valid tokens of its pages, the last span being as short as it is."""

    @given(
        scenario=scenarios(
            config=configs(tail="mean", candidate_pages=1, span_pages=st.integers(1, 5), max_missed_mass=None),
            calls=decode_only(),
            masks=("none", "ragged", "page"),
        )
    )
    def test_spans_of_any_length(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)
