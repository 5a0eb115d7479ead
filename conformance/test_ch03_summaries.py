"""SPEC chapter 3: summaries. They show in the ranking of pages and in the tail."""

from __future__ import annotations

import torch
from hypothesis import example, given
from hypothesis import strategies as st
from kiv_reference import KIVConfig

from .data import Recipe, Shape
from .driver import drive
from .strategies import Scenario, configs, decode_only, scenarios, shapes
from .target import Target

FLOAT64_WEIGHTS = Scenario(
    KIVConfig(hot_tokens=0, sink_tokens=0, page_tokens=1, span_pages=3, candidate_pages=1, retrieve_tokens=1),
    Shape(value_width=3, dtype=torch.float64),
    Recipe("gaussian", 0),
    ((9, False), (1, True)),
    scale=0.0625,
)
"""Found here: pages of a span were weighed in float32 although the keys were float64."""


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
        )
    )
    def test_spans_of_any_length(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)

    @given(
        scenario=scenarios(
            config=configs(
                tail="mean",
                candidate_pages=1,
                hot_tokens=st.integers(0, 2),
                page_tokens=st.integers(2, 4),
                span_pages=st.integers(2, 5),
                max_missed_mass=None,
            ),
            calls=decode_only(),
            masks=("ragged", "page", "inside"),
        )
    )
    def test_pages_weigh_by_their_valid_tokens(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)

    @given(
        scenario=scenarios(
            config=configs(tail="mean", candidate_pages=1, hot_tokens=0, max_missed_mass=None),
            shape=shapes(dtype=torch.float64, width=4),
            calls=decode_only(),
        )
    )
    @example(scenario=FLOAT64_WEIGHTS)
    def test_in_float64(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)
