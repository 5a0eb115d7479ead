"""SPEC 9.1: what an append and an attend take, and what they leave alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kiv_reference.errors import KIVShapeError, KIVUsageError

from .data import Recipe, Shape, Tokens
from .driver import Driver
from .expect import refused
from .life_cycle import DV, TINY, B, D, H, scenarios, used

if TYPE_CHECKING:
    from .strategies import Scenario
    from .target import Target


class Test_9_1_AppendAttend:
    """The first append fixes shapes, dtype and device, and an attend holds the queries of the last append."""

    @pytest.mark.parametrize(
        ("key", "value", "valid"),
        [
            ((B, H, 0, D), (B, H, 0, DV), None),
            ((B + 1, H, 1, D), (B + 1, H, 1, DV), None),
            ((B, H + 1, 1, D), (B, H + 1, 1, DV), None),
            ((B, H, 1, D + 1), (B, H, 1, DV), None),
            ((B, H, 1, D), (B, H, 1, DV + 1), None),
            ((B, H, 2, D), (B, H, 1, DV), None),
            ((B, H, D), (B, H, DV), None),
            ((B, H, 1, D), (B, H, 1, DV), (B, 2)),
            ((B, H, 1, D), (B, H, 1, DV), (B + 1, 1)),
        ],
    )
    def test_shapes_of_append(self, target: Target, key: Any, value: Any, valid: Any) -> None:
        driver = used(target)
        mask = None if valid is None else torch.ones(valid, dtype=torch.bool)
        arguments: dict[str, Any] = {"key": torch.zeros(key), "value": torch.zeros(value), "valid": mask}
        refused(driver, KIVShapeError, "9.1", "append", **arguments)

    @pytest.mark.parametrize(
        ("key", "value"),
        [(torch.float64, torch.float64), (torch.float32, torch.float16), (torch.int64, torch.int64)],
    )
    def test_dtypes_of_append(self, target: Target, key: torch.dtype, value: torch.dtype) -> None:
        driver = used(target)
        key_of, value_of = torch.zeros(B, H, 1, D, dtype=key), torch.zeros(B, H, 1, DV, dtype=value)
        refused(driver, KIVShapeError, "9.1", "append", key=key_of, value=value_of)

    def test_a_mask_must_be_bool(self, target: Target) -> None:
        key, value, valid = torch.zeros(B, H, 1, D), torch.zeros(B, H, 1, DV), torch.ones(B, 1)
        refused(used(target), KIVShapeError, "9.1", "append", key=key, value=value, valid=valid)

    def test_inference_mode_may_come_and_go(self, target: Target) -> None:
        tokens = Recipe("gaussian", 6).make(Shape(B, H, 2, D, DV), 20)
        with torch.inference_mode():
            driver = used(target)
        for t in range(20):  # one by one: most of them go where an earlier append left room
            driver.append(tokens.slice(t, t + 1))
            driver.attend(tokens.query[:, :, t : t + 1], 0.5)

    @pytest.mark.parametrize("shape", [(B + 1, 4, 1, D), (B, 3, 1, D), (B, 4, 1, D + 1), (B, 4, D), (B, 0, 1, D)])
    def test_shapes_of_attend(self, target: Target, shape: tuple[int, ...]) -> None:
        refused(used(target), KIVShapeError, "9.1", "attend", query=torch.zeros(shape), scale=0.5)

    def test_dtype_of_attend(self, target: Target) -> None:
        query = torch.zeros(B, 4, 1, D, dtype=torch.float16)
        refused(used(target), KIVShapeError, "9.1", "attend", query=query, scale=0.5)

    def test_another_number_of_queries(self, target: Target) -> None:
        refused(used(target), KIVUsageError, "9.1", "attend", query=torch.zeros(B, 4, 2, D), scale=0.5)

    def test_attend_after_a_crop(self, target: Target) -> None:
        driver = used(target)
        driver.crop(12)
        refused(driver, KIVUsageError, "9.1", "attend", query=torch.zeros(B, 4, 1, D), scale=0.5)

    def test_attend_before_any_append(self, target: Target) -> None:
        driver = Driver(target, TINY)
        refused(driver, KIVUsageError, "9.1", "attend", query=torch.zeros(B, 4, 1, D), scale=0.5)

    @given(scenario=scenarios(), inside=st.lists(st.booleans(), min_size=8, max_size=8))
    def test_inference_mode_may_alternate(self, target: Target, scenario: Scenario, inside: list[bool]) -> None:
        driver, tokens, start = Driver(target, scenario.config, scenario.exact_population), scenario.tokens, 0
        for turn, (n, attends) in enumerate(scenario.chunks):
            with torch.inference_mode(inside[2 * turn % 8]):
                chunk = tokens.slice(start, start + n)
                driver.append(chunk)
            start += n
            if attends:
                with torch.inference_mode(inside[(2 * turn + 1) % 8]):
                    driver.attend(chunk.query, scenario.scale, scenario.softcap, scenario.sink_logits(n))
        with torch.inference_mode(inside[6]):
            driver.crop(start // 2)
        with torch.inference_mode(inside[7]):
            chunk = tokens.slice(start // 2, start)
            driver.append(chunk)
            driver.attend(chunk.query, scenario.scale)

    @given(scenario=scenarios())
    def test_the_caller_may_change_its_tensors_afterwards(self, target: Target, scenario: Scenario) -> None:
        driver, tokens = Driver(target, scenario.config), scenario.tokens
        start = 0
        for n, attends in scenario.chunks:
            chunk = tokens.slice(start, start + n)
            valid = None if chunk.valid is None else chunk.valid.clone()
            mine = Tokens(chunk.key.clone(), chunk.value.clone(), chunk.query.clone(), valid)
            driver.append(mine)
            for tensor in mine[:2]:
                tensor.fill_(77)
            if mine.valid is not None:
                mine.valid.fill_(False)
            if attends:
                driver.attend(mine.query, scenario.scale, scenario.softcap, scenario.sink_logits(n))
                driver.last = None  # it cannot be had again
                mine.query.fill_(77)
            start += n
