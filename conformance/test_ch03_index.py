"""SPEC chapter 3: the index. It shows in the candidates and in the tail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from .driver import drive
from .expect import share
from .strategies import Scenario, configs, decode_only, sampled, scenarios, shapes

if TYPE_CHECKING:
    from .target import Target

CHOICE: dict[str, Any] = {
    "hot_tokens": st.integers(0, 2),
    "candidate_tokens": st.integers(1, 3),
    "max_missed_mass": None,
    "tail": "mean",
}
"""Many cold tokens for few candidates."""


class Test_3_1_Page:
    """A page's means and extremes are those of its valid tokens, and without any it has no index."""

    @given(scenario=scenarios(exact_population=True, config=configs(True, **CHOICE), calls=decode_only()))
    def test_means_and_extremes(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)

    @given(
        scenario=scenarios(
            config=configs(**CHOICE), mask_kind=st.sampled_from(("page", "ragged", "inside")), calls=decode_only()
        )
    )
    def test_padding_in_pages(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)

    @given(
        scenario=scenarios(
            config=configs(**CHOICE, retrieve_tokens=1, page_tokens=st.integers(3, 8)),
            values=("unlike",),
            calls=decode_only(),
        )
    )
    def test_mean_values_reach_the_tail(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)


class Test_3_2_SampledQueries:
    """Channels weigh by the largest queries sampled at the last 16 multiples of 64 before a page is cold."""

    @given(scenario=sampled(exact_population=True, index_channels=st.integers(1, 3), tail="mean"))
    def test_multiples(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)

    @share(0.5)
    @given(scenario=sampled(index_channels=st.integers(1, 3)))
    def test_multiples_in_floating_point(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)

    @given(
        scenario=scenarios(
            config=configs(
                prefill="retrieve",
                page_tokens=st.integers(2, 4),
                index_channels=st.integers(1, 2),
                exact_suffix_tokens=0,
                query_block_tokens=st.sampled_from([3, 7]),
                **CHOICE,
            ),
            shape=shapes(batch=1, heads=1, width=st.sampled_from([4, 5])),
            calls=st.integers(20, 40).map(lambda n: [n]),
            kinds=("gaussian", "spiky"),
        )
    )
    def test_queries_of_the_call_itself_count(self, target: Target, scenario: Scenario) -> None:
        first = scenario.chunks[-1][0] // 2
        chunks = ((60 - first, False), *scenario.chunks[-1:])
        drive(target, Scenario(scenario.config, scenario.shape, scenario.recipe, chunks, mask_kind=scenario.mask_kind))

    @given(scenario=scenarios(config=configs(**CHOICE), mask_kind=st.sampled_from(("ragged", "left")), most=67))
    def test_queries_at_padding_do_not_count(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)


class Test_3_3_Codes:
    """The channels of largest weight times radius are coded by 16 equal steps, rounded as IEEE arithmetic has it."""

    @given(
        scenario=scenarios(
            config=configs(**CHOICE, index_channels=64, page_tokens=8, retrieve_tokens=1),
            shape=shapes(dtype=torch.float32, batch=1, heads=1, groups=1, width=st.sampled_from([4, 5])),
            kinds=("gaussian", "sixteenths", "needle"),
            calls=decode_only(1),
            mask_kind="none",
        )
    )
    def test_steps(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    @given(data=st.data())
    def test_steps_in_other_dtypes(self, target: Target, dtype: torch.dtype, data: st.DataObject) -> None:
        config = configs(**CHOICE, index_channels=st.sampled_from([1, 2, 64]), page_tokens=st.integers(1, 8))
        kinds = ("gaussian", "sixteenths", "few", "huge", "tiny", "denormal")
        drive(target, data.draw(scenarios(config=config, shape=shapes(dtype=dtype, width=4), kinds=kinds)))

    @given(
        scenario=scenarios(
            exact_population=True,
            config=configs(True, **CHOICE, index_channels=st.integers(1, 4)),
            shape=shapes(width=st.sampled_from([5, 8])),
            calls=decode_only(),
        )
    )
    def test_channels_and_their_ties(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)


class Test_3_4_ApproximateKey:
    """A key is approximated by the middle of its step in coded channels, and by the page's mean in the others."""

    @pytest.mark.parametrize("channels", [1, 3, 64])
    @given(data=st.data())
    def test_channels(self, target: Target, channels: int, data: st.DataObject) -> None:
        config = configs(**CHOICE, index_channels=channels, page_tokens=st.integers(2, 8))
        drive(target, data.draw(scenarios(config=config, shape=shapes(width=5), calls=decode_only())))
