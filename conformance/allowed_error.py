"""How far two correct implementations may differ (SPEC 11.3): a low-precision run against the oracle, plus rounding.

The low-precision run is `low`. The rounding term is the textbook worst case of a sum of products in any order;
nothing here was tuned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .low import LowPrecision
    from .oracle import Answer, Modifiers, Term
    from .oracle_index import Page
    from .oracle_numbers import Vector
    from .oracle_shift import Shift

LEAST = {torch.float64: 2.0**-1022, torch.float32: 2.0**-126, torch.bfloat16: 2.0**-126, torch.float16: 2.0**-24}
"""Results below this may be flushed to zero."""


@dataclass(frozen=True)
class Precision:
    """The dtype of tensors at the border, and with it that of computation.

    Attributes
    ----------
    narrow : bool
        Whether weights and outputs of tiles may be rounded to the dtype of the border (SPEC 1.2): in blocks that attend
        everything, on a device.
    """

    border: torch.dtype
    narrow: bool = False

    def of_block(self, whole: bool) -> Precision:
        """Return the precision of a block, `whole` if it attends everything."""
        return replace(self, narrow=self.narrow and whole)

    @cached_property
    def compute(self) -> torch.dtype:
        """Dtype of computation (SPEC 1.2)."""
        return torch.float64 if self.border == torch.float64 else torch.float32

    @cached_property
    def unit(self) -> float:
        """Unit roundoff of computation."""
        return torch.finfo(self.compute).eps / 2

    @cached_property
    def out_unit(self) -> float:
        """Unit roundoff of the output."""
        return torch.finfo(self.border).eps / 2


def index_rounding(page: Page, width: int, magnitude: float, precision: Precision) -> float:
    """Return the rounding of an estimate over scale for a token of a page: of q·base, a mean in it, and the codes' sum.

    These have up to four times the size of the keys, in whatever order they are multiplied and added; the weights are
    the same everywhere. `magnitude` is Σ |q| times the page's largest |k|.
    """
    return 4 * (width + page.count + 12) * precision.unit * magnitude


def index_errors(
    low_run: LowPrecision, members: Sequence[Vector], scale: float, precision: Precision
) -> list[list[float]]:
    """Return the error of the estimate of each member and valid cold position."""
    truth = low_run.head.index_scores(members, scale)[1]
    low = low_run.index_scores(members, scale)
    pages = low_run.head.page_at.values()
    result: list[list[float]] = []
    for m, query in enumerate(members):
        known: dict[int, float] = {}
        for page, magnitude in zip(low_run.head.pages.values(), low_run.magnitudes(query)[1].values(), strict=True):
            rounding = index_rounding(page, len(query), magnitude, precision)
            known[page.index] = scale * rounding + LEAST[precision.compute]
        rows = zip(low[m], truth[m], pages, strict=True)
        result.append([abs(a - b) + known[page.index] for a, b, page in rows])
    return result


def token_errors(
    low_run: LowPrecision, members: Sequence[Vector], positions: Sequence[int], scale: float, precision: Precision
) -> list[list[float]]:
    """Return the error of the token score of each member and position."""
    head = low_run.head
    low = low_run.token_scores(members, positions, scale)
    steps = (len(members[0]) + 4) * precision.unit
    result: list[list[float]] = []
    for m, query in enumerate(members):
        magnitudes, truth = low_run.magnitudes(query)[0], head.products(query)
        row = [abs(low[m][n] - scale * truth[i]) + steps * scale * magnitudes[i] for n, i in enumerate(positions)]
        result.append([error + LEAST[precision.compute] for error in row])
    return result


def group_errors(
    scores: Sequence[Sequence[float]], errors: Sequence[Sequence[float]], group: str, precision: Precision
) -> list[float]:
    """Return the error of the group score of each item (SPEC 4.3)."""
    items = range(len(scores[0]))
    if group == "max":
        return [max(e[i] for e in errors) for i in items]
    result = [LEAST[precision.compute]] * len(scores[0])
    for row, error in zip(scores, errors, strict=True):
        top = max(row)
        # The maximum of the other implementation may sit elsewhere, but its value moves by at most this.
        least = top - max(error)
        top_error = max(e for s, e in zip(row, error, strict=True) if s + e >= least)
        for i in items:
            exponent = row[i] - top
            moved = error[i] + top_error + precision.unit * abs(exponent)
            grown = math.expm1(moved) if moved < 700 else math.inf
            relative = grown + (len(scores) + 8) * precision.unit
            result[i] += min(1.0, math.exp(exponent) * relative) if relative < math.inf else 1.0
    return result


@dataclass(frozen=True)
class AllowedError:
    """Allowed differences of one query's answer."""

    output: list[float]
    mass: float


@np.errstate(invalid="ignore", over="ignore")  # values that are not finite make the allowed error so, which is right
def allowed_error(
    low_run: LowPrecision,
    query: Vector,
    terms: Sequence[Term],
    answer: Answer,
    m: Modifiers,
    precision: Precision,
) -> AllowedError:
    """Return the allowed difference of one query's output and mass shares, the selection being the same."""
    output, weights, norm = answer
    if not terms:
        return AllowedError([0.0] * len(output), 0.0)
    unit, (by_token, by_page) = precision.unit, low_run.magnitudes(query)
    deltas: list[float] = []
    for term in terms:
        steps = len(query) + 8 + (0 if term.page is None else len(term.positions) + 8)
        if term.page is None:
            moves = unit * steps * by_token[term.positions[0]]
        else:
            magnitude = by_page[term.page.index]
            moves = unit * steps * magnitude
            moves += index_rounding(term.page, len(query), magnitude, precision) if term.estimated else 0.0
        logs = abs(term.logit) + abs(norm) + 8
        deltas.append(m.scale * moves + unit * (16 * logs + 2 * len(terms)))
    moved = math.fsum(w * math.expm1(min(d, 80.0)) for w, d in zip(weights, deltas, strict=True))
    low_output, low_weights = low_run.answer(query, terms, math.fsum(weights), m)
    drift = math.fsum(abs(a - b) for a, b in zip(low_weights, weights, strict=True))
    mass = min(1.0, 3 * moved + drift + 8 * unit)

    # [K] terms, [DV] channels, in float64.
    values, weight = np.abs([t.value for t in terms]), np.array(weights)
    relative = np.expm1(np.minimum(deltas, 80.0))
    summed = unit * np.array([len(t.positions) + len(terms) + 8 for t in terms])
    size_out = np.abs(output)
    hull = values.max(axis=0) + size_out
    computed = hull
    if moved < 0.25:
        spread = (weight * (relative + summed)) @ values + (weight @ relative) * size_out
        computed = np.minimum(hull, 1.5 * spread)
    measured = np.abs(np.subtract(low_output, output))
    rounding = precision.out_unit * (size_out + computed) + LEAST[precision.border]
    if precision.narrow:  # two roundings of what is added up; weights are relative to the largest, which is 1
        rounding = rounding + 2 * (
            precision.out_unit * (weight @ values) + LEAST[precision.border] * values.sum(axis=0)
        )
    return AllowedError((np.minimum(measured, hull) + computed + rounding).tolist(), mass)


def shift_error(
    shift: Shift, query: Vector, member: int, errors: Sequence[Sequence[float]], precision: Precision
) -> list[float]:
    """Return the error of the shift of one query's mean values, for each channel (SPEC 5.4).

    Parameters
    ----------
    member : which of the block's members the query is
    errors : error of the token score of each member and selected position
    """
    if not shift.selected:
        return [0.0] * len(shift.head.values[0])
    unit = precision.unit
    worst = [max(row) for row in errors]
    # log S_i moves by the error of a score and of the maximum below it; their mean moves by the mean of that.
    logs = [2 * max(worst) + unit * (16 + 4 * abs(x) + len(shift.members)) for x in shift.groups]
    middle = math.fsum(logs) / len(logs) + unit * len(logs) * max(map(abs, shift.groups))
    weights, logits = shift.weights(query), shift.head.logits(query, shift.selected, shift.modifiers)
    relative: list[float] = []
    for n in range(len(shift.selected)):
        logit = abs(logits[n])
        grows = errors[member][n] + 4 * (logs[n] + middle) + unit * (16 + 16 * logit + len(weights))
        relative.append(math.expm1(min(grows, 80.0)))
    together = math.fsum(w * r for w, r in zip(weights, relative, strict=True))
    result: list[float] = []
    for c in range(len(shift.head.values[0])):
        sizes = [abs(row[c]) for row in shift.deviations]
        largest = max(abs(shift.head.values[i][c]) for j in shift.pages for i in j.positions)
        moved = 2 * max(sizes)
        if together < 0.25:
            spread = math.fsum(w * (r + together) * x for w, r, x in zip(weights, relative, sizes, strict=True))
            moved = min(moved, 1.5 * spread)
        result.append(0.5 * moved + unit * (shift.head.config.page_tokens + len(weights) + 16) * largest)
    return result


def with_shift(
    allowed: AllowedError,
    terms: Sequence[Term],
    answer: Answer,
    shift: Shift,
    member: tuple[Vector, int, Sequence[Sequence[float]], Precision],
) -> list[float]:
    """Return the allowed difference of one query's output, the error of the shift included.

    `member` as for `shift_error`.
    """
    shifted = [w for w, term in zip(answer.weights, terms, strict=True) if term.page is not None]
    if not shifted:  # nothing is shifted, and a value that is not a number may lie in the selection's pages
        return allowed.output
    share = min(1.0, math.fsum(shifted) + allowed.mass)
    moved = shift_error(shift, *member)
    return [a + share * b for a, b in zip(allowed.output, moved, strict=True)]
