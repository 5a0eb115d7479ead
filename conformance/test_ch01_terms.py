"""SPEC chapter 1: terms."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kiv_reference import KIVConfig

from .data import EXACT_KINDS, Recipe, Shape, Tokens
from .driver import Driver, drive
from .expect import same_report
from .strategies import DTYPES, Scenario, configs, decode_only, scenarios, shapes

if TYPE_CHECKING:
    from .target import Target


class Test_1_1_Letters:
    """Query head h uses KV head ⌊h / G⌋, and values may be wider or narrower than keys."""

    @given(scenario=scenarios(shape=shapes(heads=st.integers(2, 3), groups=st.integers(1, 4), value_width=7)))
    def test_heads_and_widths(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)

    @given(config=configs(), heads=st.integers(1, 4), groups=st.integers(1, 4), n=st.integers(1, 40))
    def test_a_query_head_sees_its_kv_head_only(
        self, target: Target, config: KIVConfig, heads: int, groups: int, n: int
    ) -> None:
        driver = Driver(target, config)
        tokens = Recipe("gaussian", n).make(Shape(1, heads, groups, 4, 2), n)
        value = torch.arange(heads).float()[None, :, None, None].expand(1, heads, n, 2)
        driver.append(tokens._replace(value=value.contiguous()))
        output = driver.attend(tokens.query, 0.5)
        expected = torch.arange(heads).repeat_interleave(groups).float()[None, :, None, None].expand_as(output)
        torch.testing.assert_close(output, expected)


class Test_1_2_Arithmetic:
    """Inputs are the numbers that their dtype holds, computation is in float32 or wider, the output has the query's
    dtype, and zeros have no sign.
    """

    @pytest.mark.parametrize("dtype", DTYPES)
    @given(data=st.data())
    def test_every_dtype(self, target: Target, dtype: torch.dtype, data: st.DataObject) -> None:
        drive(target, data.draw(scenarios(shape=shapes(dtype=dtype))))

    @given(scenario=scenarios(shape=shapes(width=st.sampled_from([64, 128, 256]), groups=1)))
    def test_wide_keys(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)

    @given(scenario=scenarios(kinds=("signed_zeros", "bits"), mask_kind="none"))
    def test_zeros_have_no_sign(self, target: Target, scenario: Scenario) -> None:
        one, two = Driver(target, scenario.config), Driver(target, scenario.config)
        for driver, zero in ((one, 0.0), (two, -0.0)):
            start = 0
            for n, attends in scenario.chunks:
                key, value, query, _ = scenario.tokens.slice(start, start + n)
                key, query = (torch.where(x == 0, zero, x) for x in (key, query))
                driver.append(Tokens(key, value, query))
                if attends:
                    driver.attend(query, scenario.scale)
                start += n
        same_report(one, two, "1.2")


class Test_1_3_Ranking:
    """The n best are those of the highest score, the lower index first among equals."""

    @given(scenario=scenarios(exact_population=True, kinds=("bits", "few_integers")))
    def test_ties(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)

    @given(config=configs(max_missed_mass=None), steps=decode_only(1), n=st.integers(20, 60))
    def test_all_alike(self, target: Target, config: KIVConfig, steps: list[int], n: int) -> None:
        driver = Driver(target, dataclasses.replace(config, group="max"), exact=True)
        shapes = [((1, 1, size, 4), (1, 1, size, 2), (1, 2, size, 4)) for size in (n, *steps)]
        calls = [Tokens(*map(torch.ones, each)) for each in shapes]
        for tokens in calls:
            driver.append(tokens)
        driver.attend(calls[-1].query, 0.5)
        block = driver.store.report.blocks[0]
        if block.mode == "retrieve":  # SPEC 4.1
            cold = list(range(config.sink_tokens, config.sink_tokens + block.cold_pages * config.page_tokens))
            candidates, first = cold[: config.candidate_tokens], cold[: config.retrieve_tokens]
            driver.scene.require(block.candidate_positions.tolist() == [[candidates]], "1.3", "not the first tokens")
            driver.scene.require(block.selected_positions.tolist() == [[first]], "1.3", "not the first positions")


class Test_1_4_Defaults:
    """A configuration without arguments has the defaults of the specification, and a pool shows its configuration."""

    def test_values(self) -> None:
        expected = {
            "hot_tokens": 2048,
            "sink_tokens": 4,
            "page_tokens": 512,
            "index_channels": 64,
            "candidate_tokens": 4096,
            "retrieve_tokens": 1024,
            "group": "exp_sum",
            "tail": "mean",
            "prefill": "exact",
            "query_block_tokens": 32,
            "exact_suffix_tokens": 64,
            "max_missed_mass": None,
            "device_bytes": None,
            "ram_bytes": None,
            "disk_bytes": None,
            "spill_dir": None,
        }
        assert dataclasses.asdict(KIVConfig()) == expected

    def test_a_pool_has_them(self, target: Target) -> None:
        pool = target.factory(KIVConfig())
        assert pool.config == KIVConfig()
        pool.close()

    def test_the_defaults_retrieve_in_a_long_text(self, target: Target) -> None:
        # Long enough that the default window, page and selection are all in use.
        driver = Driver(target, KIVConfig(), exact=False)
        first = 4 + 9 * 512 + 2048
        tokens = Recipe(EXACT_KINDS[0], 1).make(Shape(1, 1, 2, 4, 2), first + 1)
        for start, stop in ((0, 4095), (4095, 4096), (4096, first), (first, first + 1)):
            driver.append(tokens.slice(start, stop))
            if stop == start + 1:  # the first of them is sampled
                driver.attend(tokens.query[:, :, start:stop], 0.125)
        block = driver.store.report.blocks[0]
        driver.scene.require(block.cold_pages == 9, "1.4", "wrong cold pages", got=block.cold_pages)
        driver.scene.require(block.candidate_positions.shape[2] == 4096, "1.4", "wrong candidates")
        driver.scene.require(block.selected_positions.shape[2] == 1024, "1.4", "wrong selection")
