"""SPEC chapter 2: state."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import event, example, given
from hypothesis import strategies as st
from kiv_reference import KIVConfig
from kiv_reference.errors import KIVNonFiniteError

from .answers import same_bits
from .data import MASKS, Recipe, Shape, Tokens
from .driver import Driver, drive
from .expect import refused, same_retrieval
from .refill import refill, tokens_of
from .strategies import Scenario, blocks_only, configs, decode_only, sampled, scenarios

if TYPE_CHECKING:
    from .target import Target

WEIGHTLESS = Scenario(
    KIVConfig(hot_tokens=0, sink_tokens=0, page_tokens=1, candidate_tokens=1, retrieve_tokens=1),
    Shape(value_width=3),
    Recipe("huge", 1, "same"),
    ((1, True), (1, True), (1, True)),
    scale=0.0625,
    bad_values=1,
)
"""An infinite value in a tail whose weight is zero in any precision."""

CANDIDATE = Scenario(
    KIVConfig(
        hot_tokens=0, sink_tokens=0, page_tokens=1, index_channels=1, candidate_tokens=2, retrieve_tokens=1, group="max"
    ),
    Shape(width=4, value_width=3),
    Recipe("huge", 0, "same"),
    ((62, False), (1, True), (1, True)),
    scale=0.0625,
    mask_kind="left",
    bad_values=1,
)
"""The same for a candidate that is not selected."""

BESIDE = Scenario(
    KIVConfig(hot_tokens=0, sink_tokens=0, page_tokens=2, candidate_tokens=1, retrieve_tokens=1),
    Shape(value_width=3),
    Recipe("huge", 0, "same"),
    ((1, True),) * 4,
    scale=0.0625,
    bad_values=1,
)
"""The same for what is far below the selected token of its page."""

ROUNDING = Scenario(
    KIVConfig(
        hot_tokens=0,
        sink_tokens=0,
        page_tokens=1,
        candidate_tokens=1,
        retrieve_tokens=1,
        prefill="retrieve",
        query_block_tokens=1,
        exact_suffix_tokens=0,
    ),
    Shape(groups=2, width=16, value_width=3),
    Recipe("near_ties", 1),
    ((1, True), (9, True)),
)
"""Tokens alike but for rounding, which decides otherwise once they all are cold."""

PADDED = tuple(kind for kind in MASKS if kind != "none")


class Test_2_1_FunctionOfTheTokens:
    """The same tokens and sampled queries in any chunks give the same partition, index and answers."""

    @given(scenario=scenarios(exact_population=True), cuts=st.lists(st.integers(1, 20), max_size=6))
    def test_chunks_of_the_exact_population(self, target: Target, scenario: Scenario, cuts: list[int]) -> None:
        self._both(target, scenario, cuts, exact=scenario.config.max_missed_mass is None)

    @given(scenario=sampled(exact_population=True), cuts=st.lists(st.integers(1, 99), max_size=6))
    def test_chunks_with_many_samples(self, target: Target, scenario: Scenario, cuts: list[int]) -> None:
        self._both(target, scenario, cuts, exact=True)

    @given(scenario=scenarios(), cuts=st.lists(st.integers(1, 20), max_size=6))
    def test_chunks(self, target: Target, scenario: Scenario, cuts: list[int]) -> None:
        self._both(target, scenario, cuts, exact=False)

    def _both(self, target: Target, scenario: Scenario, cuts: list[int], exact: bool) -> None:
        driver = drive(target, scenario)
        other = Driver(target, scenario.config, scenario.exact_population)
        oracle = driver.oracle
        tokens = tokens_of(oracle, scenario.shape.dtype, oracle.values)
        refill(other, oracle, tokens, list(itertools.accumulate(cuts)))
        query, arguments, *_ = driver.attended
        other.attend(query, **arguments)
        other.scene.require(other.store.tokens() == driver.store.tokens(), "2.1", "another partition")
        if exact:
            same_retrieval(driver, other, "2.1")


class Test_2_2_Partition:
    """Sinks come first, whole pages follow once they lie `hot_tokens` behind, and the rest is hot."""

    @given(config=configs(), steps=st.lists(st.integers(1, 9), min_size=1, max_size=12))
    def test_every_length(self, target: Target, config: KIVConfig, steps: list[int]) -> None:
        driver = Driver(target, config)
        for n in steps:
            driver.append(Recipe("gaussian", n).make(Shape(), n))
            got, length = driver.store.tokens(), driver.store.length
            cold = got.cold_ram + got.cold_disk
            scene = driver.scene
            scene.require(sum(got) == length, "2.2", "the parts do not add up", got=got)
            scene.require(cold % config.page_tokens == 0, "2.2", "a part of a page is cold", got=got)
            most = config.hot_tokens + config.page_tokens - 1
            scene.require(got.hot <= most, "2.2", "too many hot tokens", got=got, expected=most)
            least = min(length - got.sinks, config.hot_tokens)
            scene.require(got.hot >= least, "2.2", "too few hot tokens", got=got, expected=least)

    @pytest.mark.parametrize("beyond", [-1, 0, 1])
    @given(config=configs(), pages=st.integers(1, 4))
    def test_a_page_leaves_whole(self, target: Target, beyond: int, config: KIVConfig, pages: int) -> None:
        length = config.sink_tokens + config.hot_tokens + pages * config.page_tokens + beyond
        driver = Driver(target, config)
        if length:
            driver.append(Recipe("gaussian", length).make(Shape(), length))
        cold = driver.store.tokens().cold_ram + driver.store.tokens().cold_disk
        expected = (pages - (beyond < 0) + (beyond > 0 and config.page_tokens == 1)) * config.page_tokens
        driver.scene.require(cold == expected, "2.2", "wrong cold tokens", got=cold, expected=expected)


class Test_2_3_AttendFirstEvictAfterwards:
    """A block uses the partition at its first query's position, whatever was moved when."""

    @given(scenario=scenarios(calls=blocks_only(20), most=30))
    def test_blocks(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)

    @given(config=configs(hot_tokens=st.integers(0, 3), page_tokens=st.integers(1, 3)), n=st.integers(2, 40))
    def test_a_call_sees_as_hot_what_leaves_the_window_in_it(self, target: Target, config: KIVConfig, n: int) -> None:
        driver = Driver(target, config)
        tokens = Recipe("gaussian", n).make(Shape(), n)
        driver.append(tokens)
        driver.attend(tokens.query, 0.5)
        first = driver.store.report.blocks[0]
        driver.scene.require(first.cold_pages == 0, "2.3", "pages were cold before the call", got=first.cold_pages)


def _asked(scenario: Scenario, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return validity of the queries of each call, bool ``[B, 1, TQ, 1]``."""
    flags, start = [], 0
    valid = scenario.tokens.valid
    assert valid is not None, "the scenario has padding"
    for n, attends in scenario.chunks:
        if attends:
            flags.append(valid[:, None, start : start + n, None].to(outputs[len(flags)].device))
        start += n
    return flags


class Test_2_4_Padding:
    """An invalid position keeps its place and is otherwise as if it were not there, whatever it holds."""

    @pytest.mark.parametrize("kind", PADDED)
    @given(data=st.data())
    def test_every_kind_of_padding(self, target: Target, kind: str, data: st.DataObject) -> None:
        drive(target, data.draw(scenarios(mask_kind=kind)))

    def test_a_limit_that_holds_by_equality(self, target: Target) -> None:
        """A query at padding that counts as 0 misses tokens of equal mass: a tenth of them, no more and no less."""
        config = KIVConfig(
            hot_tokens=16, sink_tokens=2, page_tokens=2, candidate_tokens=5, retrieve_tokens=1, max_missed_mass=0.1,
            prefill="retrieve", query_block_tokens=1, exact_suffix_tokens=0,
        )  # fmt: skip
        recipe, chunks = Recipe("gaussian", 0, "same"), ((17, False), (11, True))
        drive(target, Scenario(config, Shape(value_width=3), recipe, chunks, 0.0625, mask_kind="ragged", mask_seed=211))

    @given(
        scenario=scenarios(mask_kind=st.sampled_from(PADDED)), filler=st.sampled_from([0.0, 1e4, math.inf, -math.inf])
    )
    def test_what_padding_holds_does_not_matter(self, target: Target, scenario: Scenario, filler: float) -> None:
        driver = drive(target, scenario)
        tokens = scenario.tokens
        assert tokens.valid is not None, "the scenario has padding"
        hole = ~tokens.valid[:, None, :, None]
        key, value, query = (torch.where(hole, filler, x) for x in tokens[:3])
        other, start, outputs = Driver(target, scenario.config), 0, []
        for n, attends in scenario.chunks:
            chunk = Tokens(key, value, query, tokens.valid).slice(start, start + n)
            other.append(chunk)
            if attends:
                output = other.attend(chunk.query, scenario.scale, scenario.softcap, scenario.sink_logits(n))
                outputs.append(output.masked_fill(hole[:, :, start : start + n].to(output.device), 0))
            start += n
        there = driver.operations.outputs
        here = [output.masked_fill(~flags, 0) for output, flags in zip(there, _asked(scenario, there), strict=True)]
        same = all(map(same_bits, here, outputs))
        other.scene.require(same, "2.4", "what padding holds changed another token's output", filler=filler)

    @given(scenario=scenarios(mask_kind=st.sampled_from(PADDED)))
    def test_padding_sees_the_valid_tokens_before_it(self, target: Target, scenario: Scenario) -> None:
        """What a plain cache gives: here in exact mode, where full attention is the answer."""
        config = dataclasses.replace(scenario.config, retrieve_tokens=None, prefill="exact", max_missed_mass=None)
        driver = Driver(target, config)
        for output, flags in zip(driver.run(scenario), _asked(scenario, driver.operations.outputs), strict=True):
            event(f"padding has something to see: {bool(output.masked_fill(flags, 0).any())}")

    @given(scenario=scenarios(mask_kind=st.sampled_from(("left", "ragged")), calls=decode_only()))
    def test_no_mask_means_all_valid(self, target: Target, scenario: Scenario) -> None:
        tokens = scenario.tokens
        driver, plain = Driver(target, scenario.config), scenario.recipe.make(scenario.shape, tokens.key.shape[2])
        driver.append(plain)
        driver.scene.require(driver.store.valid is None, "2.4", "a mask without padding", got=driver.store.valid)
        driver.append(tokens)
        assert tokens.valid is not None, "the scenario has padding"
        padded = not bool(tokens.valid.all())
        driver.scene.require((driver.store.valid is not None) == padded, "2.4", "wrong validity")


class Test_2_5_FiniteKeys:
    """A key or query that is not finite at a valid position is refused; a value that is not finite shows where it is
    attended, and nowhere else.
    """

    @given(
        scenario=scenarios(mask_kind="none"),
        bad=st.sampled_from([math.nan, math.inf, -math.inf]),
        what=st.sampled_from(["key", "query"]),
        seed=st.integers(0, 999),
    )
    @example(scenario=ROUNDING, bad=math.nan, what="key", seed=0)
    def test_keys_and_queries(self, target: Target, scenario: Scenario, bad: float, what: str, seed: int) -> None:
        driver = drive(target, scenario)
        n = scenario.chunks[-1][0]
        tokens = scenario.recipe.make(scenario.shape, n)
        wrong = getattr(tokens, what).clone()
        wrong.flatten()[seed % wrong.numel()] = bad
        if what == "key":
            then = {"query": tokens.query, "scale": 0.5}
            refused(driver, KIVNonFiniteError, "2.5", "append", then, key=wrong, value=tokens.value)
        else:
            refused(driver, KIVNonFiniteError, "2.5", "attend", query=wrong, scale=0.5)

    @given(scenario=scenarios(bad_values=st.integers(1, 99)))
    @example(scenario=WEIGHTLESS)
    @example(scenario=CANDIDATE)
    @example(scenario=BESIDE)
    def test_values(self, target: Target, scenario: Scenario) -> None:
        driver = drive(target, scenario)
        finite = all(bool(torch.isfinite(output).all()) for output in driver.operations.outputs)
        event(f"outputs finite: {finite}")
