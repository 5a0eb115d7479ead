"""SPEC chapter 4: retrieval."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from hypothesis import target as steer

from .answers import same_bits
from .data import EXACT_KINDS
from .driver import Driver, drive
from .expect import same_retrieval
from .strategies import Scenario, blocks_only, configs, decode_only, scenarios, shapes
from .target import Target

FREE = {"max_missed_mass": None}


class Test_4_1_QueryBlock:
    """Each sequence and KV head retrieves on its own, for one block of queries at a time."""

    @given(scenario=scenarios(config=configs(prefill="retrieve", **FREE), calls=blocks_only()))
    def test_blocks(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)

    @given(
        scenario=scenarios(
            exact_population=True,
            config=configs(exact_population=True, **FREE),
            shape=shapes(batch=2, heads=2),
            sinks="none",
        )
    )
    def test_sequences_and_heads_do_not_meet(self, target: Target, scenario: Scenario) -> None:
        driver, g = drive(target, scenario), scenario.shape.groups
        for b in range(2):
            for h in range(2):
                other, start = Driver(target, scenario.config, exact=True), 0
                for n, attends in scenario.chunks:
                    key, value, query, _ = scenario.tokens.slice(start, start + n)
                    one = slice(b, b + 1), slice(h, h + 1)
                    other.append(type(scenario.tokens)(key[one], value[one], query[one[0], h * g : (h + 1) * g]))
                    if attends:
                        other.attend(query[one[0], h * g : (h + 1) * g], scenario.scale, scenario.softcap)
                    start += n
                for mine, alone in zip(driver.store.report.blocks, other.store.report.blocks, strict=True):
                    left = [i for i in mine.selected_positions[b, h].tolist() if i >= 0]
                    right = [i for i in alone.selected_positions[0, 0].tolist() if i >= 0]
                    other.scene.require(left == right, "4.1", "a sequence or head retrieves otherwise alone")


class Test_4_2_PageScore:
    """A page's score is scale · (q·mean + α Σ |q| spread)."""

    @pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
    @given(data=st.data())
    def test_exact_population(self, target: Target, weight: float, data: st.DataObject) -> None:
        config = configs(exact_population=True, spread_weight=weight, candidate_pages=st.integers(1, 3), **FREE)
        drive(target, data.draw(scenarios(exact_population=True, config=config, calls=decode_only())))

    @given(
        scenario=scenarios(
            config=configs(
                spread_weight=st.floats(0, 1),
                candidate_pages=st.integers(2, 9),
                hot_tokens=0,
                page_tokens=st.integers(1, 3),
                **FREE,
            ),
            kinds=("needle", "pages", "spiky", "gaussian"),
            calls=decode_only(),
        )
    )
    def test_pages_whose_mean_hides_a_needle(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)


class Test_4_3_GroupScore:
    """Query heads of a KV head agree by the sum of exponentials below each one's maximum, or by their maximum."""

    @pytest.mark.parametrize("group", ["exp_sum", "max"])
    @given(data=st.data())
    def test_groups(self, target: Target, group: str, data: st.DataObject) -> None:
        config = configs(group=group, candidate_pages=st.integers(1, 3), **FREE)
        drive(target, data.draw(scenarios(config=config, shape=shapes(groups=st.integers(2, 4), width=8))))

    @given(
        scenario=scenarios(
            config=configs(group="exp_sum", candidate_pages=st.integers(2, 9), hot_tokens=0, page_tokens=2, **FREE),
            shape=shapes(groups=st.integers(2, 4), width=8),
            kinds=("gaussian", "spiky", "pages"),
            calls=decode_only(),
            scale=st.sampled_from([0.125, 0.25, 2.0]),
        )
    )
    def test_many_pages_for_heads_that_disagree(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)


class Test_4_4_Candidates:
    """The candidates are the C best pages."""

    @given(
        scenario=scenarios(
            exact_population=True,
            config=configs(exact_population=True, hot_tokens=st.integers(0, 2), **FREE),
            calls=decode_only(),
        )
    )
    def test_exactly(self, target: Target, scenario: Scenario) -> None:
        driver = drive(target, scenario)
        block = driver.store.report.blocks[-1]
        more = block.cold_pages > scenario.config.candidate_pages
        event(f"more pages than candidates: {more}")
        steer(float(block.cold_pages), label="cold pages")

    @given(scenario=scenarios(config=configs(hot_tokens=st.integers(0, 2), **FREE), calls=decode_only()))
    def test_admissibly(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)


class Test_4_5_TokenScore:
    """A candidate's token has the score scale · q·k."""

    @given(
        scenario=scenarios(
            config=configs(candidate_pages=6, hot_tokens=st.integers(0, 2), **FREE),
            kinds=("gaussian", "near_ties", "few", "spiky", "huge"),
            calls=decode_only(),
        )
    )
    def test_tokens(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)


class Test_4_6_Selection:
    """The selection is the R best valid tokens of the candidate pages, lower positions first among equals."""

    @given(
        scenario=scenarios(
            exact_population=True,
            config=configs(exact_population=True, hot_tokens=st.integers(0, 2), **FREE),
            kinds=EXACT_KINDS,
        )
    )
    def test_exactly(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)

    @given(scenario=scenarios(config=configs(prefill="retrieve", hot_tokens=st.integers(0, 2), **FREE)))
    def test_admissibly(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)

    @given(
        scenario=scenarios(
            exact_population=True, config=configs(exact_population=True, **FREE), softcap=st.sampled_from([0.5, 2.0])
        )
    )
    def test_softcap_and_sink_logits_do_not_rank(self, target: Target, scenario: Scenario) -> None:
        driver, other = drive(target, scenario), Driver(target, scenario.config, exact=True)
        start = 0
        for n, attends in scenario.chunks:
            chunk = scenario.tokens.slice(start, start + n)
            other.append(chunk)
            if attends:
                other.attend(chunk.query, scenario.scale)
            start += n
        same_retrieval(driver, other, "4.6")


class Test_4_7_ValuesAreReadLast:
    """The value of a cold token that is neither selected nor part of a mean value in use is never read."""

    @given(scenario=scenarios(config=configs(tail="none"), calls=decode_only(1)))
    def test_poisoned_values(self, target: Target, scenario: Scenario) -> None:
        driver = drive(target, scenario)
        query, arguments, output, _ = driver.last
        tokens, n = scenario.tokens, driver.store.length
        read = torch.zeros(*tokens.value.shape[:3], dtype=torch.bool)
        for block in driver.store.report.blocks:
            hot = scenario.config.sink_tokens + block.cold_pages * scenario.config.page_tokens
            read[:, :, : scenario.config.sink_tokens] = True
            read[:, :, hot:] = True
            read |= block.streamed[:, :, None]
            if tokens.valid is not None:  # what padding retrieves is not reported (SPEC 2.4)
                read |= ~tokens.valid[:, None, -1:]
            for b, h in torch.cartesian_prod(torch.arange(read.shape[0]), torch.arange(read.shape[1])).tolist():
                chosen = block.selected_positions[b, h]
                read[b, h, chosen[chosen >= 0]] = True
        event(f"poisoned: {not bool(read.all())}")
        holes = tokens._replace(value=tokens.value.masked_fill(~read[..., None], math.nan))
        other, start = Driver(target, scenario.config), 0
        for size, _ in scenario.chunks:
            other.append(holes.slice(start, start + size))
            start += size
        driver.scene.require(start == n, "4.7", "the twin has other tokens")
        again = other.store.attend(query, **arguments)
        other.scene.require(same_bits(output, again), "4.7", "a value that is not needed was read", got=again)


class Test_4_8_ExactMode:
    """With `retrieve_tokens=None` every call equals full attention."""

    @given(scenario=scenarios(config=configs(retrieve_tokens=None, max_missed_mass=None), most=30))
    def test_nothing_is_left_out(self, target: Target, scenario: Scenario) -> None:
        driver = drive(target, scenario)
        for block in driver.store.report.blocks:
            driver.scene.require(block.mode == "exact" and bool(block.streamed.all()), "4.8", "not exact", got=block)

    @given(
        scenario=scenarios(
            config=configs(retrieve_tokens=None, max_missed_mass=None),
            shape=shapes(dtype=torch.float64),
            kinds=("gaussian", "spiky"),
            masks=("none",),
            sinks="none",
            softcap=None,
        )
    )
    def test_against_torch(self, target: Target, scenario: Scenario) -> None:
        driver, tokens = drive(target, scenario), scenario.tokens
        n, length = scenario.chunks[-1][0], tokens.key.shape[2]
        mask = torch.ones(length, length, dtype=torch.bool).tril()[length - n :]
        full = torch.nn.functional.scaled_dot_product_attention(
            tokens.query[:, :, length - n :], tokens.key, tokens.value, mask, scale=scenario.scale, enable_gqa=True
        )
        torch.testing.assert_close(driver.journal.outputs[-1], full)
