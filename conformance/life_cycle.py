"""What the tests of a store's life cycle share: scenarios, and a small store that has been used."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from kiv_reference import KIVConfig

from .data import VALUES, Recipe, Shape
from .driver import Driver
from .strategies import recipes as recipes_of
from .strategies import scenarios as scenarios_of

if TYPE_CHECKING:
    from .target import Target

B, H, D, DV = 2, 2, 4, 3
scenarios = partial(scenarios_of, values=VALUES)
recipes = partial(recipes_of, values=st.sampled_from(VALUES))
"""With values unlike in size and infinite ones: a store keeps account of which there are, through all of its life."""

TINY = KIVConfig(hot_tokens=2, sink_tokens=1, page_tokens=2, candidate_tokens=4, retrieve_tokens=2)


def used(target: Target, attended: bool = True) -> Driver:
    """Return a store of twelve tokens, the last of which was attended."""
    driver = Driver(target, TINY)
    tokens = Recipe("gaussian", 5).make(Shape(B, H, 2, D, DV), 12)
    driver.append(tokens.slice(0, 11))
    driver.append(tokens.slice(11, 12))
    if attended:
        driver.attend(tokens.query[:, :, 11:], 0.5)
    return driver


SAMPLED: dict[str, Any] = {
    "hot_tokens": st.integers(0, 2),
    "index_channels": st.integers(1, 2),
    "candidate_tokens": st.integers(1, 4),
    "tail": "mean",
    "max_missed_mass": None,
}
"""The weights of channels show."""
