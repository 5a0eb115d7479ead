"""SPEC chapter 9 from 9.2 on: what happens to a store between appends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from kiv_reference import KIVConfig
from kiv_reference.errors import KIVUsageError

from .answers import same_bits
from .data import Recipe, Shape
from .driver import Driver, drive
from .expect import refused
from .life_cycle import SAMPLED, TINY, recipes, scenarios, used
from .refill import refill
from .strategies import Scenario, configs, decode_only, shapes

if TYPE_CHECKING:
    from .target import Target

LIMITED = Scenario(
    KIVConfig(
        hot_tokens=1, sink_tokens=1, page_tokens=2, index_channels=1, candidate_tokens=1, retrieve_tokens=1,
        query_block_tokens=1, exact_suffix_tokens=0, max_missed_mass=0.5,
    ),
    Shape(groups=2, width=4, value_width=3),
    Recipe("gaussian", 0, "same"),
    ((3, False), (1, True)),
    scale=0.0625,
)  # fmt: skip
"""A huge hot key after it: float32 cannot tell what is missed."""


class Test_9_2_Crop:
    """A cropped store is that of its first tokens alone."""

    @given(scenario=scenarios(), part=st.floats(0, 1), extra=recipes(), n=st.integers(1, 9))
    def test_crop_and_go_on(self, target: Target, scenario: Scenario, part: float, extra: Recipe, n: int) -> None:
        driver = drive(target, scenario)
        driver.crop(round(driver.oracle.length * part))
        tokens = extra.make(scenario.shape, n)
        driver.append(tokens)
        driver.attend(tokens.query, scenario.scale)

    @given(
        scenario=scenarios(config=configs(hot_tokens=st.integers(0, 4), candidate_tokens=st.integers(1, 5))),
        part=st.floats(0, 1),
        extra=recipes(),
        steps=st.integers(1, 2),
    )
    @example(scenario=LIMITED, part=1.0, extra=Recipe("huge", 0, "same"), steps=2)
    def test_other_tokens_in_place_of_the_cropped(
        self, target: Target, scenario: Scenario, part: float, extra: Recipe, steps: int
    ) -> None:
        driver = drive(target, scenario)
        length = driver.oracle.length
        driver.crop(round(length * part))
        tokens = extra.make(scenario.shape, length + steps - driver.oracle.length)
        n = tokens.key.shape[2]
        if n > steps:
            driver.append(tokens.slice(0, n - steps))
        for at in range(n - steps, n):
            driver.append(tokens.slice(at, at + 1))
            driver.attend(tokens.query[:, :, at : at + 1], scenario.scale)

    @given(
        config=configs(**SAMPLED),
        recipe=recipes(("gaussian", "spiky", "integers")),
        extra=recipes(("gaussian", "spiky", "integers")),
        length=st.sampled_from([1, 60, 63, 64, 65, 80]),
        again=st.booleans(),
        groups=st.integers(1, 2),
    )
    def test_samples_stay_and_go(
        self, target: Target, config: KIVConfig, recipe: Recipe, extra: Recipe, length: int, again: bool, groups: int
    ) -> None:
        """What was sampled before a crop weighs channels of pages that are cold after it, and nothing else does."""
        driver, shape = Driver(target, config), Shape(groups=groups, width=5)
        tokens, others = recipe.make(shape, 90), extra.make(shape, 100)
        for start, stop in ((0, 63), (63, 64), (64, 90)):
            driver.append(tokens.slice(start, stop))
            if start == 63:
                driver.attend(tokens.query[:, :, 63:64], 0.5)
        driver.crop(length)
        steps = [stop for stop in (63, 64, 97, 98) if stop > length]
        for start, stop in zip([length, *steps], steps, strict=False):
            driver.append(others.slice(start, stop))
            if stop == 98 or (stop == 64 and again and start == 63):
                driver.attend(others.query[:, :, start:stop], 0.5)

    @given(scenario=scenarios(), part=st.floats(0, 1))
    def test_a_crop_holds_no_more_than_its_tokens(self, target: Target, scenario: Scenario, part: float) -> None:
        driver, other = drive(target, scenario), Driver(target, scenario.config)
        length = round(driver.oracle.length * part)
        driver.crop(length)
        if length:
            refill(other, driver.oracle, scenario.tokens.slice(0, length), [])
        got, expected = sum(driver.store.memory()), sum(other.store.memory())
        driver.scene.require(got <= expected, "10.3", "a crop holds too much", got=got, expected=expected)

    @pytest.mark.parametrize("length", [-1, 13])
    def test_bad_lengths(self, target: Target, length: int) -> None:
        refused(used(target), KIVUsageError, "9.2", "crop", length=length)


class Test_9_3_Batch:
    """Reorder, select and repeat copy whole sequences, with all that belongs to them."""

    @given(scenario=scenarios(shape=shapes(batch=3)), data=st.data())
    def test_copies(self, target: Target, scenario: Scenario, data: st.DataObject) -> None:
        driver = drive(target, scenario)
        for _ in range(2):
            batch = len(driver.oracle.valid)
            row = st.integers(0, batch - 1)
            what = data.draw(st.sampled_from(["reorder", "select", "repeat"]))
            if what == "reorder":
                driver.reorder(data.draw(st.lists(row, min_size=batch, max_size=batch)))
            elif what == "select":
                driver.select(data.draw(st.lists(row, min_size=1, max_size=4)))
            elif batch <= 3:
                driver.repeat_interleave(data.draw(st.integers(1, 2)))
            shape = Shape(len(driver.oracle.valid), *vars_of(scenario.shape))
            tokens = data.draw(recipes()).make(shape, data.draw(st.sampled_from([1, 1, 3])))
            driver.append(tokens)
            driver.attend(tokens.query, scenario.scale)

    @given(scenario=scenarios(shape=shapes(batch=2), calls=decode_only(1)))
    def test_the_queries_of_the_last_append_go_along(self, target: Target, scenario: Scenario) -> None:
        driver = drive(target, scenario)
        query, arguments, *_ = driver.attended
        driver.select([1, 0, 1])
        if arguments["sink_logits"] is None or arguments["sink_logits"].ndim == 1:
            driver.attend(query[[1, 0, 1]], **arguments)

    @pytest.mark.parametrize("method", ["reorder", "select"])
    @pytest.mark.parametrize("rows", [[0, 2], [-1, 0], [], [[0, 1]], [0.0, 1.0]])
    def test_bad_rows(self, target: Target, method: str, rows: list[Any]) -> None:
        tensor = torch.tensor(rows) if rows else torch.empty(0, dtype=torch.int64)
        refused(used(target), KIVUsageError, "9.3", method, rows=tensor)

    def test_reorder_needs_a_row_for_each_sequence(self, target: Target) -> None:
        refused(used(target), KIVUsageError, "9.3", "reorder", rows=torch.tensor([0]))

    def test_repeats_must_be_positive(self, target: Target) -> None:
        refused(used(target), KIVUsageError, "9.3", "repeat_interleave", repeats=0)


def vars_of(shape: Shape) -> tuple[Any, ...]:
    """Return all of a shape but its batch."""
    return shape.heads, shape.groups, shape.width, shape.value_width, shape.dtype


class Test_9_4_Fork:
    """A fork answers as the original would, and nothing done to one shows in the other."""

    @given(scenario=scenarios(), left=recipes(), right=recipes(), n=st.integers(1, 8), part=st.floats(0, 1))
    def test_they_go_their_ways(
        self, target: Target, scenario: Scenario, left: Recipe, right: Recipe, n: int, part: float
    ) -> None:
        driver = drive(target, scenario)
        other = driver.fork()
        other.again()
        for one, recipe, twin in ((driver, left, other), (other, right, driver)):
            tokens = recipe.make(scenario.shape, n)
            one.append(tokens)
            twin.again()
            one.attend(tokens.query, scenario.scale)
        driver.again()
        other.crop(round(other.oracle.length * part))
        driver.again()
        other.reset()
        driver.again()

    @given(
        config=configs(**SAMPLED),
        left=recipes(("gaussian", "spiky")),
        right=recipes(("gaussian", "integers")),
        before=st.sampled_from([62, 63]),
        parts=st.sampled_from(["fork", "reorder"]),
    )
    def test_each_samples_for_itself(
        self, target: Target, config: KIVConfig, left: Recipe, right: Recipe, before: int, parts: str
    ) -> None:
        """Two stores that were one before position 63, and go on with queries of their own."""
        driver, shape = Driver(target, config), Shape(groups=2, width=5)
        driver.append(left.make(shape, before))
        stores = driver, driver.fork()
        if parts == "reorder":
            stores[1].select([0])
        for store, recipe in zip(stores, (left, right), strict=True):
            tokens = recipe.make(shape, 100)
            store.append(tokens.slice(before, 64))
            store.attend(tokens.query[:, :, before:64], 0.5)
        for store, recipe in zip(stores, (left, right), strict=True):
            tokens = recipe.make(shape, 100)
            for start, stop in ((64, 98), (98, 99)):
                store.append(tokens.slice(start, stop))
            store.attend(tokens.query[:, :, 98:99], 0.5)


class Test_9_5_Reset:
    """A reset store is a new one, and holds nothing."""

    @given(scenario=scenarios(), other=scenarios(most=20))
    def test_another_life(self, target: Target, scenario: Scenario, other: Scenario) -> None:
        driver = drive(target, scenario)
        driver.reset()
        driver.scene.require(sum(driver.pool.memory()) == 0, "9.5", "a reset pool holds bytes")
        driver.exact = False
        again = Scenario(scenario.config, other.shape, other.recipe, other.chunks, other.scale)
        driver.run(again)
        fresh = drive(target, again)
        same = same_bits(driver.operations.outputs[-1], fresh.operations.outputs[-1])
        driver.scene.require(same, "9.5", "a reset store answers otherwise than a new one")

    def test_the_report_is_gone(self, target: Target) -> None:
        driver = used(target)
        driver.reset()
        with pytest.raises(KIVUsageError):
            _ = driver.store.report


class Test_9_6_Report:
    """After an attend the report holds one entry for each block: what was retrieved, its masses, and the bytes read."""

    @given(scenario=scenarios())
    def test_blocks_cover_the_call(self, target: Target, scenario: Scenario) -> None:
        driver = drive(target, scenario)
        blocks, n = driver.store.report.blocks, scenario.chunks[-1][0]
        covered = [i for block in blocks for i in range(block.first_query, block.first_query + block.query_tokens)]
        expected = list(range(driver.oracle.length - n, driver.oracle.length))
        driver.scene.require(covered == expected, "9.6", "blocks do not cover the call", got=covered)
        for name in ("key_bytes", "value_bytes"):
            whole = sum(getattr(block, name) for block in blocks)
            driver.scene.require(getattr(driver.store.report, name) == whole, "9.6", f"{name} do not add up")
        widened = sum(int(block.widened.sum()) for block in blocks)
        driver.scene.require(driver.store.report.widened == widened, "9.6", "widened heads do not add up")

    @given(scenario=scenarios())
    def test_forms(self, target: Target, scenario: Scenario) -> None:
        driver, s = drive(target, scenario), scenario.shape
        for block in driver.store.report.blocks:
            masses = (s.batch, s.heads * s.groups, block.query_tokens)
            for name in ("exact_mass", "estimated_mass", "missed_bound"):
                tensor = getattr(block, name)
                good = tuple(tensor.shape) == masses and tensor.dtype == torch.float32
                driver.scene.require(good, "9.6", f"wrong form of {name}", got=tensor)
            for name, dtype in (("candidate_positions", torch.int64), ("selected_positions", torch.int64)):
                tensor = getattr(block, name)
                good = tuple(tensor.shape[:2]) == (s.batch, s.heads) and tensor.dtype == dtype and tensor.ndim == 3
                driver.scene.require(good, "9.6", f"wrong form of {name}", got=tensor)
            for name in ("streamed", "widened"):
                tensor = getattr(block, name)
                good = tuple(tensor.shape) == (s.batch, s.heads) and tensor.dtype == torch.bool
                driver.scene.require(good, "9.6", f"wrong form of {name}", got=tensor)

    def test_asking_too_early_is_an_error(self, target: Target) -> None:
        for driver in (Driver(target, TINY), used(target, attended=False)):
            with pytest.raises(KIVUsageError):
                _ = driver.store.report
