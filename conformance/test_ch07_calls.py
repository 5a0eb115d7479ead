"""SPEC chapter 7: calls of several queries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from kiv_reference import KIVConfig
from kiv_reference.errors import KIVUsageError

from .data import Recipe, Shape
from .driver import Driver, drive
from .expect import refused
from .strategies import Scenario, blocks_only, configs, decode_only, scenarios

if TYPE_CHECKING:
    from .target import Target


def _mode(config: KIVConfig, cold_tokens: int) -> str:
    """Return the mode of a block that is no suffix."""
    return "exact" if config.prefill == "retrieve" and cold_tokens <= config.candidate_tokens else config.prefill


class Test_7_1_PrefillExact:
    """With `prefill="exact"`, and in exact mode, every query of a call of several attends to every valid position."""

    @given(scenario=scenarios(config=configs(prefill="exact"), calls=blocks_only(20), most=24))
    def test_every_position(self, target: Target, scenario: Scenario) -> None:
        driver = drive(target, scenario)
        modes = [block.mode for block in driver.store.report.blocks]
        driver.scene.require(modes == ["exact"], "7.1", "a call of several was not exact", got=modes)


class Test_7_2_PrefillRetrieve:
    """With `prefill="retrieve"` each block of queries behaves as a call of its own."""

    @given(
        scenario=scenarios(
            config=configs(prefill="retrieve", hot_tokens=st.integers(0, 4)), calls=blocks_only(20), most=24
        )
    )
    def test_blocks(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)


class Test_7_3_PrefillWindow:
    """With `prefill="window"` each block attends to sinks and hot only, without a tail."""

    @given(scenario=scenarios(config=configs(prefill="window", hot_tokens=st.integers(0, 3)), calls=blocks_only(20)))
    def test_sinks_and_hot(self, target: Target, scenario: Scenario) -> None:
        driver = drive(target, scenario)
        for block in driver.store.report.blocks:
            if block.mode == "window":
                nothing = block.value_bytes == 0 and not bool(block.estimated_mass.any())
                driver.scene.require(nothing, "7.3", "a window read cold tokens or had a tail", got=block)


class Test_7_4_Suffix:
    """The last `exact_suffix_tokens` queries of a prompt attend exactly, whatever `prefill` says."""

    @given(
        scenario=scenarios(
            config=configs(prefill=st.sampled_from(["retrieve", "window"]), exact_suffix_tokens=st.integers(0, 9)),
            calls=blocks_only(),
            most=24,
            remaining=st.sampled_from([None, 0, 1, 2, 4, 9]),
        )
    )
    def test_the_end_of_a_prompt(self, target: Target, scenario: Scenario) -> None:
        driver = drive(target, scenario)
        n = scenario.chunks[-1][0]
        suffix = max(0, scenario.config.exact_suffix_tokens - (scenario.remaining or 0))
        first, blocks = driver.store.length - n, driver.store.report.blocks
        if suffix:
            exact = blocks[-1].query_tokens if blocks[-1].mode == "exact" else 0
            driver.scene.require(exact == min(n, suffix), "7.4", "wrong suffix", got=exact, expected=min(n, suffix))
        cold = [scenario.config.page_tokens * b.cold_pages for b in blocks if b.first_query < first + n - suffix]
        chosen = [b.mode for b in blocks if b.first_query < first + n - suffix]
        right = [_mode(scenario.config, tokens) for tokens in cold]
        driver.scene.require(chosen == right, "7.4", "wrong blocks before the suffix", got=chosen, expected=right)


class Test_7_5_Decode:
    """A call of one query retrieves, or is exact where there is nothing to choose or leave out, and is no window."""

    @given(scenario=scenarios(config=configs(exact_suffix_tokens=st.integers(0, 3)), calls=decode_only()))
    def test_one_query(self, target: Target, scenario: Scenario) -> None:
        driver = drive(target, scenario)
        (block,) = driver.store.report.blocks
        choice = block.cold_pages * scenario.config.page_tokens > scenario.config.candidate_tokens
        mode = "retrieve" if choice else "exact"
        event(f"mode: {mode}")
        driver.scene.require(block.mode == mode, "7.5", "wrong mode of one query", got=block.mode, expected=mode)

    @given(scenario=scenarios(config=configs(retrieve_tokens=None, max_missed_mass=None), calls=decode_only()))
    def test_one_query_in_exact_mode(self, target: Target, scenario: Scenario) -> None:
        driver = drive(target, scenario)
        zeros = torch.zeros_like(driver.store.report.blocks[0].estimated_mass)
        same = torch.equal(driver.store.report.blocks[0].estimated_mass, zeros)
        driver.scene.require(same, "7.5", "exact mode estimated something")


class Test_7_6_PromptsInSeveralCalls:
    """A prompt whose calls are told what follows is answered alike in whatever chunks it comes."""

    @given(
        scenario=scenarios(
            config=configs(hot_tokens=st.integers(0, 3), exact_suffix_tokens=st.integers(0, 9)),
            calls=st.lists(st.sampled_from([1, 1, 2, 5, 9]), min_size=1, max_size=2),
            most=24,
            remaining=st.sampled_from([0, 1, 3, 2**70]),
        )
    )
    def test_calls_that_are_told(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)

    @given(
        scenario=scenarios(
            exact_population=True,
            config=configs(
                exact_population=True,
                hot_tokens=st.integers(0, 4),
                candidate_tokens=st.sampled_from([1, 3, 8]),
                exact_suffix_tokens=st.integers(0, 9),
                max_missed_mass=None,
            ),
            sinks="none",
        ),
        blocks=st.integers(1, 6),
        last=st.integers(1, 9),
        cuts=st.sets(st.integers(1, 6)),
        before=st.sampled_from([0, 40, 57]),
    )
    def test_chunking_by_blocks_does_not_matter(
        self, target: Target, scenario: Scenario, blocks: int, last: int, cuts: set[int], before: int
    ) -> None:
        size = scenario.config.query_block_tokens
        tokens = scenario.recipe.make(scenario.shape, before + size * blocks + last)
        end = tokens.key.shape[2]
        found: list[dict[int, tuple[str, list[list[list[int]]]]]] = []
        for edges in ([], [before + size * cut for cut in sorted(cuts) if cut <= blocks]):
            driver, start = Driver(target, scenario.config, exact=True), before
            if before:
                driver.append(tokens.slice(0, before))
            found.append({})
            for stop in (*edges, end):
                chunk = tokens.slice(start, stop)
                driver.append(chunk)
                driver.attend(chunk.query, scenario.scale, scenario.softcap, remaining_prompt_tokens=end - stop)
                for b in driver.store.report.blocks:
                    same = b.mode, b.selected_positions.tolist()
                    found[-1].update(dict.fromkeys(range(b.first_query, b.first_query + b.query_tokens), same))
                start = stop
        event(f"calls: {len(edges) + 1}")
        driver.scene.require(found[0] == found[1], "7.6", "chunking changed an answer", got=found)

    @given(scenario=scenarios(remaining=st.sampled_from([0, 99]), calls=blocks_only()), n=st.integers(1, 9))
    def test_nothing_of_it_is_kept(self, target: Target, scenario: Scenario, n: int) -> None:
        driver = drive(target, scenario)
        tokens = scenario.recipe.make(scenario.shape, n)
        driver.append(tokens)
        driver.attend(tokens.query, scenario.scale)

    @pytest.mark.parametrize("bad", [-1, 1.0, "1", True, torch.tensor([1, 2])])
    def test_bad_numbers(self, target: Target, bad: Any) -> None:
        driver = Driver(target, KIVConfig())
        tokens = Recipe("gaussian", 0).make(Shape(), 3)
        driver.append(tokens)
        driver.attend(tokens.query, 0.5)
        arguments: dict[str, Any] = {"query": tokens.query, "scale": 0.5, "remaining_prompt_tokens": bad}
        refused(driver, KIVUsageError, "7.6", "attend", **arguments)
