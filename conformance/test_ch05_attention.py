"""SPEC chapter 5: attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import event, given
from hypothesis import strategies as st

from .driver import drive
from .strategies import Scenario, blocks_only, configs, decode_only, scenarios, shapes

if TYPE_CHECKING:
    from .target import Target

COLD: dict[str, Any] = {
    "hot_tokens": st.integers(0, 3),
    "sink_tokens": st.integers(0, 2),
    "candidate_tokens": st.integers(1, 8),
    "max_missed_mass": None,
}
SHIFTED: dict[str, Any] = {
    **COLD, "tail": "mean", "page_tokens": st.integers(4, 5), "candidate_tokens": st.integers(4, 8),
    "retrieve_tokens": st.integers(2, 4),
}  # fmt: skip

FEW: dict[str, Any] = {**COLD, "candidate_tokens": 8, "retrieve_tokens": st.integers(1, 2)}


class Test_5_1_LogitsAndOutput:
    """The output is the softmax-weighted mean of the values of sinks, selection and hot up to the query's position."""

    @given(scenario=scenarios(config=configs(tail="none", max_missed_mass=None)))
    def test_attended_tokens(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)

    @given(scenario=scenarios(config=configs(tail="none"), calls=blocks_only(), most=20))
    def test_causality_inside_a_call(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)

    @given(scenario=scenarios(mask_kind=st.sampled_from(("left", "all")), calls=decode_only()))
    def test_without_any_token_the_output_is_zeros(self, target: Target, scenario: Scenario) -> None:
        driver = drive(target, scenario)
        event(f"an output is all zeros: {any(bool((o == 0).all()) for o in driver.operations.outputs)}")


class Test_5_2_Tail:
    """Unselected tokens of a page count as one of its mean value: candidates by logit, others by estimate."""

    @given(
        scenario=scenarios(
            config=configs(tail="mean", page_tokens=st.integers(2, 8), **COLD),
            shape=shapes(width=st.sampled_from([4, 8])),
            calls=decode_only(),
        )
    )
    def test_leftovers(self, target: Target, scenario: Scenario) -> None:
        driver = drive(target, scenario)
        event(f"estimated mass: {bool((driver.store.report.blocks[-1].estimated_mass > 0).any())}")

    @given(
        scenario=scenarios(
            config=configs(
                tail="mean",
                index_channels=st.integers(1, 2),
                **FEW,
            ),
            shape=shapes(width=8),
            softcap=st.sampled_from([None, 1.0]),
        )
    )
    def test_candidates_that_were_not_selected_count_by_their_own_logits(
        self, target: Target, scenario: Scenario
    ) -> None:
        drive(target, scenario)


class Test_5_3_NoTail:
    """With `tail="none"` what is not attended does not count."""

    @given(scenario=scenarios(config=configs(tail="none", **COLD)))
    def test_no_estimated_mass(self, target: Target, scenario: Scenario) -> None:
        driver = drive(target, scenario)
        for block in driver.store.report.blocks:
            driver.scene.require(not bool(block.estimated_mass.any()), "5.3", "estimated mass without a tail")


class Test_5_4_ShiftOfMeanValues:
    """Mean values move as the lighter half of the selection differs from the means of its pages."""

    @given(
        scenario=scenarios(
            config=configs(**SHIFTED),
            shape=shapes(width=st.sampled_from([4, 8])),
        )
    )
    def test_shift(self, target: Target, scenario: Scenario) -> None:
        driver = drive(target, scenario)
        block = driver.store.report.blocks[-1]
        selected = int((block.selected_positions >= 0).sum())
        event(f"a selection, and estimated mass: {selected > 0 and bool((block.estimated_mass > 0).any())}")

    @given(
        scenario=scenarios(
            config=configs(**SHIFTED),
            calls=decode_only(),
            mask_kind=st.sampled_from(("left", "all")),
        )
    )
    def test_padding(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)
