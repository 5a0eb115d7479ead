"""SPEC 4.2: the estimate, on keys whose base is 0, so that an estimate is a whole number of units, and on others."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kiv_reference import KIVConfig

from .data import Tokens
from .driver import Driver, drive
from .expect import same_retrieval
from .oracle_estimate import whole_weights
from .strategies import SCALES, Scenario, configs, decode_only, scenarios, shapes

if TYPE_CHECKING:
    from .target import Target

FREE: dict[str, Any] = {"max_missed_mass": None}


def config(candidates: int, page_tokens: int) -> KIVConfig:
    """Configure nothing hot, no sink, all channels coded, and all candidates selected: their scores do not matter."""
    sizes: dict[str, Any] = {"hot_tokens": 0, "sink_tokens": 0, "page_tokens": page_tokens, "group": "max"}
    return KIVConfig(candidate_tokens=candidates, retrieve_tokens=candidates, **sizes)


def keys(codes: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """Return keys ``[n, D]`` of a page that get these codes and steps, and a base of 0; a 0 and a 15 in each channel.

    They are codes · step, but -step / 2 for one code of 0 and 15.5 · step for one of 15: the extremes of the page.
    """
    made = codes * steps
    for code, end in ((0, -0.5), (15, 15.5)):
        first = (codes == code).to(torch.int8).argmax(dim=0)
        made[first, torch.arange(codes.shape[1])] = end * steps
    return made


def asked(target: Target, given_config: KIVConfig, key: torch.Tensor, query: torch.Tensor, scale: float) -> Driver:
    """Return a store of the cold keys ``[n, D]``, and a decode step of the queries ``[G, D]``."""
    driver, (tokens, width) = Driver(target, given_config, exact=True), key.shape
    value = torch.arange(3.0 * (tokens + 1), dtype=key.dtype).reshape(1, 1, -1, 3) % 251 - 125
    every = torch.cat([key, key.new_zeros(1, width)])[None, None]
    whole = Tokens(every, value, query[None, :, None].expand(1, -1, tokens + 1, width))
    driver.append(whole.slice(0, tokens))
    driver.append(whole.slice(tokens, tokens + 1))
    driver.attend(whole.query[:, :, tokens:], scale)
    return driver


class Case(NamedTuple):
    """Query, steps and two tokens' codes; `sign` of the first one's estimate less the second's."""

    query: list[float]
    steps: list[float]
    one: list[int]
    two: list[int]
    sign: int
    scale: float = 1.0
    dtype: torch.dtype = torch.float32


CASES = {
    "half of a unit": Case([1, 1], [8192, 1], [1, 0], [1, 1], 0),
    "three halves": Case([1, 1, 1], [8192, 3, 4], [1, 1, 0], [1, 0, 1], 0),
    "five halves": Case([1, 1, 1], [8192, 5, 4], [1, 1, 0], [1, 0, 1], 0),
    "minus half of a unit": Case([1, -1], [8192, 1], [1, 0], [1, 1], 0),
    "minus three halves": Case([1, -1, -1], [8192, 3, 4], [1, 1, 0], [1, 0, 1], 0),
    "minus five halves": Case([1, -1, -1], [8192, 5, 4], [1, 1, 0], [1, 0, 1], 0),
    "more than half": Case([1, 1, 1], [16384, 3, 4], [1, 1, 0], [1, 0, 1], 0),
    "less than half": Case([1, 1], [16384, 1], [1, 1], [1, 0], 0),
    "a unit": Case([1, 1], [8191, 1], [1, 1], [1, 0], 1),
    "a unit by a negative product": Case([-1, 1, 1], [8191, 8190, 1], [0, 1, 1], [0, 1, 0], 1),
    "the largest weight": Case([1, 1, 1], [16383, 16382, 2], [1, 0, 0], [0, 1, 1], 0),
    "the least weight": Case([-1, 1, 1], [16383, 16382, 2], [1, 1, 1], [0, 0, 0], 0),
    "in the order written, to 44": Case([1, 0.3039832, 880 / 3], [32768, 954, 1], [1, 1, 0], [1, 0, 1], 0, 0.3),
    "in the order written, to 62": Case([1, 1.9470406, 1240 / 3], [32768, 214, 1], [1, 1, 0], [1, 0, 1], 0, 0.3),
    "half of the least unit": Case([1, 1], [8192, 8], [1, 1], [1, 0], 0, 2.0**-130, torch.float64),
    "the least unit": Case([1, 1], [8192, 16], [1, 1], [1, 0], 1, 2.0**-130, torch.float64),
    "more than half of the least unit": Case(
        [1, 1, 1], [8192, 9, 16], [1, 1, 0], [1, 0, 1], 0, 2.0**-130, torch.float64
    ),
    "beyond the largest unit": Case([1, 1], [8192, 256], [1, 0], [0, 1], 0, 2.0**120, torch.float64),
    "in the largest unit": Case(
        [1, 1, 1], [255.984375, 255.96875, 0.03125], [1, 0, 0], [0, 1, 1], 0, 2.0**120, torch.float64
    ),
}


@st.composite
def pages(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Return keys ``[n, D]`` of a few pages of eight tokens, of steps from small to large, and queries ``[G, D]``."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    width, most = draw(st.integers(1, 6)), draw(st.sampled_from([2, 4, 16]))
    rows: list[torch.Tensor] = []
    for _ in range(draw(st.integers(1, 4))):
        steps = torch.randint(0, 2 ** draw(st.sampled_from([2, 5, 13, 15, 19])), (width,), generator=generator)
        codes = torch.randint(0, most, (8, width), generator=generator)
        codes[0], codes[1] = 0, 15
        turn = torch.rand(8, width, generator=generator).argsort(dim=0)
        rows.append(keys(codes.gather(0, turn).float(), steps.float()))
    query = torch.randn(draw(st.integers(1, 3)), width, generator=generator)
    if draw(st.booleans()):
        query = (8 * query).round() / 4
    return torch.cat(rows), query


class Test_4_2_Estimate:
    """An estimate is what the query makes of the base, and a sum of codes by whole weights of 13 bits and a sign."""

    @pytest.mark.parametrize("swapped", [False, True])
    @pytest.mark.parametrize("name", CASES)
    def test_weights(self, target: Target, name: str, swapped: bool) -> None:
        """Beside the token of largest codes one of two is a candidate: of equal ones the first, wherever it is.

        Another member, of much larger products, has no token's best score.
        """
        case = CASES[name]
        tokens = [case.two, case.one] if swapped else [case.one, case.two]
        full = [15 if q > 0 else 0 for q in case.query], [0 if q > 0 else 15 for q in case.query]
        key = keys(torch.tensor([*full, *tokens], dtype=case.dtype), torch.tensor(case.steps, dtype=case.dtype))
        other = [-64 * abs(case.query[0]), *(0 for _ in case.query[1:])]
        query = torch.tensor([case.query, other], dtype=case.dtype)
        driver = asked(target, config(2, 4), key, query, case.scale)
        sign = -case.sign if swapped else case.sign
        got, right = driver.store.report.blocks[0].candidate_positions.tolist(), [[[0, 2 if sign >= 0 else 3]]]
        driver.scene.require(got == right, "4.2", "other weights", got=got, expected=right)

    @given(made=pages(), candidates=st.integers(1, 7), scale=st.sampled_from([*SCALES, 0.3, 1e-9, 1e9]))
    def test_whole_numbers_are_ranked_exactly(
        self, target: Target, made: tuple[torch.Tensor, torch.Tensor], candidates: int, scale: float
    ) -> None:
        """Whatever the query is, and however unlike the pages: no two implementations differ, ties included."""
        asked(target, config(candidates, 8), *made, scale)

    @given(made=pages(), candidates=st.integers(1, 7), turn=st.integers(1, 5))
    def test_channels_in_any_order(
        self, target: Target, made: tuple[torch.Tensor, torch.Tensor], candidates: int, turn: int
    ) -> None:
        """What is added up does not depend on the order."""
        one = asked(target, config(candidates, 8), *made, 0.3)
        key, query = (x.roll(turn, dims=1) for x in made)
        two = asked(target, config(candidates, 8), key, query, 0.3)
        same_retrieval(one, two, "4.2")

    @given(
        products=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=6),
        power=st.sampled_from([-160, -130, 0, 0, 0, 120]),
    )
    def test_weights_by_the_letter(self, products: list[float], power: int) -> None:
        """The oracle's own: whole numbers in range, as near as half a unit, of the least unit that allows it."""
        products = [a * 2.0**power for a in products]
        unit, weights = whole_weights(products)
        largest = max(map(abs, products))
        assert all(isinstance(weight, int) and abs(weight) <= 8192 for weight in weights)
        if largest < 2.0**128:
            gaps = [abs(Fraction(a) / Fraction(unit) - weight) for a, weight in zip(products, weights, strict=True)]
            assert max(gaps) <= Fraction(1, 2)
            assert all(weight % 2 == 0 for gap, weight in zip(gaps, weights, strict=True) if gap == Fraction(1, 2))
        if 2.0**-114 <= largest < 2.0**128:
            assert 4096 <= largest / unit < 8192

    @pytest.mark.parametrize("scale", [0.0625, 1.0])
    @given(data=st.data())
    def test_exact_population(self, target: Target, scale: float, data: st.DataObject) -> None:
        """Small integers need fewer bits than weights have: estimates are scale · q·k̂."""
        exact = configs(exact_population=True, candidate_tokens=st.integers(1, 3), **FREE)
        drive(target, data.draw(scenarios(True, config=exact, calls=decode_only(), scale=scale)))

    @given(
        scenario=scenarios(
            config=configs(candidate_tokens=st.integers(2, 9), hot_tokens=0, page_tokens=st.integers(1, 8), **FREE),
            kinds=("needle", "pages", "spiky", "gaussian"),
            calls=decode_only(),
        )
    )
    def test_tokens_that_their_page_hides(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)

    @given(
        scenario=scenarios(
            config=configs(candidate_tokens=st.integers(1, 3), hot_tokens=0, tail="mean", **FREE),
            shape=shapes(groups=st.integers(2, 4), width=st.sampled_from([8, 64, 256])),
            kinds=("spiky", "gaussian", "denormal", "tiny", "huge"),
            calls=decode_only(1),
        )
    )
    def test_estimates_in_the_tail(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)
