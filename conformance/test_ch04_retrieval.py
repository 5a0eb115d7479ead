"""SPEC chapter 4: retrieval."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from hypothesis import target as steer

from .answers import same_bits
from .data import EXACT_KINDS, Recipe, Shape
from .driver import Driver, drive
from .expect import same_retrieval
from .refill import refill, tokens_of
from .strategies import Scenario, blocks_only, configs, decode_only, scenarios, shapes

if TYPE_CHECKING:
    from kiv_reference import KIVConfig

    from .target import Target

FREE: dict[str, Any] = {"max_missed_mass": None}


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

    @pytest.mark.parametrize("beyond", [-1, 0, 1])
    @given(
        config=configs(candidate_tokens=st.integers(1, 9), page_tokens=st.integers(1, 5), prefill="retrieve", **FREE),
        queries=st.sampled_from([1, 4, 12]),
    )
    def test_where_there_is_nothing_to_choose(
        self, target: Target, beyond: int, config: KIVConfig, queries: int
    ) -> None:
        """Exactly up to C cold positions: a page fewer, as many, a page more; of several blocks each on its own."""
        config = dataclasses.replace(config, exact_suffix_tokens=0, query_block_tokens=4)
        pages = max(0, config.candidate_tokens // config.page_tokens + beyond)
        length = config.sink_tokens + config.hot_tokens + pages * config.page_tokens
        driver, tokens = Driver(target, config), Recipe("gaussian", pages).make(Shape(), length + queries)
        if length:
            driver.append(tokens.slice(0, length))
        driver.append(tokens.slice(length, length + queries))
        driver.attend(tokens.query[:, :, length:], 0.5)
        block = driver.store.report.blocks[0]
        cold = block.cold_pages * config.page_tokens
        event(f"as many as candidates: {cold == config.candidate_tokens}")
        mode = "retrieve" if cold > config.candidate_tokens else "exact"
        driver.scene.require(block.mode == mode, "4.1", "wrong mode", got=block.mode, expected=mode)
        driver.scene.require(bool(block.streamed.all()) == (mode == "exact"), "4.1", "wrong heads streamed")


class Test_4_3_GroupScore:
    """Query heads of a KV head agree by the sum of exponentials below each one's maximum, or by their maximum."""

    @pytest.mark.parametrize("group", ["exp_sum", "max"])
    @given(data=st.data())
    def test_groups(self, target: Target, group: str, data: st.DataObject) -> None:
        config = configs(group=group, candidate_tokens=st.integers(1, 5), **FREE)
        drive(target, data.draw(scenarios(config=config, shape=shapes(groups=st.integers(2, 4), width=8))))

    @given(
        scenario=scenarios(
            config=configs(group="exp_sum", candidate_tokens=st.integers(2, 9), hot_tokens=0, **FREE),
            shape=shapes(groups=st.integers(2, 4), width=8),
            kinds=("gaussian", "spiky", "pages"),
            calls=decode_only(),
            scale=st.sampled_from([0.125, 0.25, 2.0]),
        )
    )
    def test_many_tokens_for_heads_that_disagree(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)


class Test_4_4_Candidates:
    """The candidates are the C best valid cold tokens by their estimates, lower positions first among equals."""

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
        event(f"mode: {block.mode}")
        steer(float(block.cold_pages * scenario.config.page_tokens), label="cold tokens")

    @given(scenario=scenarios(config=configs(hot_tokens=st.integers(0, 2), **FREE), calls=decode_only()))
    def test_admissibly(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)


class Test_4_5_TokenScore:
    """A candidate has the score scale · q·k."""

    @given(
        scenario=scenarios(
            config=configs(candidate_tokens=9, retrieve_tokens=3, hot_tokens=st.integers(0, 2), **FREE),
            kinds=("gaussian", "near_ties", "few", "spiky", "huge"),
            calls=decode_only(),
        )
    )
    def test_tokens(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)


class Test_4_6_Selection:
    """The selection is the R best candidates, lower positions first among equals."""

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


class Test_4_7_ReadLast:
    """A retrieving block reads no key but those of candidates, and no cold value but those of selected tokens."""

    @given(scenario=scenarios(config=configs(tail="none"), calls=decode_only(1)))
    def test_poisoned_values(self, target: Target, scenario: Scenario) -> None:
        driver = drive(target, scenario)
        query, arguments, output, _ = driver.attended
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
        other = Driver(target, scenario.config)
        whole = tokens_of(driver.oracle, scenario.shape.dtype, driver.oracle.values)
        refill(other, driver.oracle, whole._replace(key=holes.key, value=holes.value), [])
        driver.scene.require(other.store.length == n, "4.7", "the twin has other tokens")
        again = other.store.attend(query, **arguments)
        other.scene.require(same_bits(output, again), "4.7", "a value that is not needed was read", got=again)

    @given(
        scenario=scenarios(
            config=configs(tail="mean", page_tokens=4, hot_tokens=st.integers(0, 3), **FREE),
            mask_kind="none",
            values=("distinct",),
            calls=decode_only(1),
        ),
        turn=st.integers(1, 3),
    )
    def test_values_exchanged_within_a_page(self, target: Target, scenario: Scenario, turn: int) -> None:
        """Values of unselected tokens change places: no mean value changes, all of them being small integers."""
        driver = drive(target, scenario)
        query, arguments, output, _ = driver.attended
        (block,), tokens, config = driver.store.report.blocks, scenario.tokens, scenario.config
        value = tokens.value.clone()
        for b, h in torch.cartesian_prod(*map(torch.arange, value.shape[:2])).tolist() if block.mode != "exact" else ():
            chosen = set(block.selected_positions[b, h].tolist())
            for first in range(config.sink_tokens, block.cold_pages * 4 + config.sink_tokens, 4):
                rest = [i for i in range(first, first + 4) if i not in chosen]
                value[b, h, rest] = value[b, h, rest[turn:] + rest[:turn]]
        event(f"exchanged: {not torch.equal(value, tokens.value)}")
        other = Driver(target, config)
        whole = tokens_of(driver.oracle, scenario.shape.dtype, driver.oracle.values)
        refill(other, driver.oracle, whole._replace(value=value), [])
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
            mask_kind="none",
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
        torch.testing.assert_close(driver.operations.outputs[-1], full)
