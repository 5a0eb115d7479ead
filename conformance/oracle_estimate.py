"""The second oracle's estimates: SPEC 4.2 for one query and the tokens of a page.

Weights have no tolerance, as codes have none: what decides them is computed by numpy in the dtype of SPEC 1.2. The sum
is one of Python integers, the rest Python numbers.
"""

from __future__ import annotations

import math
from operator import mul
from typing import TYPE_CHECKING, Any

import numpy as np

from .oracle_numbers import Vector, dot

if TYPE_CHECKING:
    from .oracle_index import Page

MOST = 8192
"""Largest weight."""


class Estimates:
    """Estimates of one query for the tokens of one page.

    Attributes
    ----------
    unit, weights : of the coded channels, in the order of `Page.coded`
    base : what scores have without a code, scale · q·base
    less : what rounding weights takes from a score at most
    """

    def __init__(self, query: Vector, page: Page, scale: float, dtype: type[np.floating[Any]]) -> None:
        self.page, keys = page, list(page.mean)
        for d in page.coded:
            keys[d] = page.centre[d] - 7.5 * page.step[d]
        self.base = scale * dot(query, keys)
        with np.errstate(all="ignore"):
            products = [float(dtype(scale) * dtype(query[d]) * dtype(page.step[d])) for d in page.coded]
        self.unit, self.weights = whole_weights(products)
        self.less = 15 * math.fsum(max(0.0, a - self.unit * w) for a, w in zip(products, self.weights, strict=True))

    def scores(self) -> list[float]:
        """Return the estimate of each valid position of the page."""
        return [self.base + self.unit * sum(map(mul, self.weights, codes)) for codes in self.page.codes]


def whole_weights(products: Vector) -> tuple[float, list[int]]:
    """Return the unit and the weights of a_d."""
    largest = min(max(map(abs, products)), 2.0**128)
    if largest == 0:
        return 1.0, [0] * len(products)
    unit = 2.0 ** min(max(math.frexp(largest)[1] - 13, -126), 115)  # frexp: largest / 2^e is in [1/2, 1)
    return unit, [round(max(-MOST, min(MOST, a / unit))) for a in products]  # `round` takes halves to the even number
