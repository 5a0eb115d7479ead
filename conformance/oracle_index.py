"""The second oracle's index: SPEC chapter 3, one page of one sequence and KV head at a time.

Codes have no tolerance: what decides them is computed by numpy, operation by operation, in the dtype of SPEC 1.2.
Everything else is Python numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .oracle_numbers import Vector, best, total

if TYPE_CHECKING:
    from kiv_reference import KIVConfig

EVERY, LAST, LEVELS = 64, 16, 16

Samples = Mapping[int, Sequence[Vector]]
"""Sampled positions, and the queries there of the G heads of a KV head (SPEC 3.2)."""


@dataclass(frozen=True)
class Page:
    """A cold page with at least one valid token (SPEC 3.1).

    Attributes
    ----------
    positions : its valid ones, ascending
    mean, value : of keys and of values
    coded : the coded channels, ascending
    centre, step : of every channel, numbers of the dtype of SPEC 1.2
    codes : of each valid token, of the coded channels
    largest : max |k_d|, for the allowed error
    """

    index: int
    positions: list[int]
    mean: list[float]
    value: list[float]
    coded: list[int]
    centre: list[float]
    step: list[float]
    codes: list[list[int]]
    largest: list[float]
    approximate: dict[int, list[float]]
    error: list[float]

    @property
    def count(self) -> int:
        """Valid tokens."""
        return len(self.positions)


def boundary_of(config: KIVConfig, page: int) -> int:
    """Return the boundary at which a page becomes cold (SPEC 2.2)."""
    return config.sink_tokens + (page + 1) * config.page_tokens + config.hot_tokens


def weights(samples: Samples, boundary: int, width: int) -> list[float]:
    """Return w_d of a page that becomes cold at `boundary` (SPEC 3.2)."""
    last = boundary // EVERY
    before = [EVERY * m - 1 for m in range(last - LAST + 1, last + 1)]
    queries = [q for p in before if p in samples for q in samples[p]]
    return [max(abs(q[d]) for q in queries) for d in range(width)] if queries else [1.0] * width


def page_of(
    config: KIVConfig,
    index: int,
    keys: Sequence[Vector],
    values: Sequence[Vector],
    valid: Sequence[bool],
    samples: Samples,
    dtype: type[np.floating[Any]],
) -> Page | None:
    """Return one cold page; None without valid tokens. `keys`, `values`, `valid` are those of all positions."""
    first = config.sink_tokens + index * config.page_tokens
    positions = [i for i in range(first, first + config.page_tokens) if valid[i]]
    if not positions:
        return None
    rows = [keys[i] for i in positions]
    width, n = len(rows[0]), len(rows)
    mean = [total(column) / n for column in zip(*rows, strict=True)]
    value = [total(column) / n for column in zip(*(values[i] for i in positions), strict=True)]

    with np.errstate(all="ignore"):
        k = np.array(rows, dtype)  # [n, D]; holds the numbers exactly
        low, high = k.min(axis=0), k.max(axis=0)
        centre = low / dtype(2) + high / dtype(2)
        radius = high - centre
        step = radius / dtype(8)
        codes = np.clip(np.floor((k - low) / step), 0, LEVELS - 1)
        codes = np.where(step == 0, dtype(0), codes)
        rank = np.array(weights(samples, boundary_of(config, index), width), dtype) * radius
    coded = sorted(best(rank.tolist(), min(config.index_channels, width)))

    approximate: dict[int, list[float]] = {}
    for i, code in zip(positions, codes.tolist(), strict=True):
        approximate[i] = list(mean)
        for d in coded:
            approximate[i][d] = float(centre[d]) + (code[d] - 7.5) * float(step[d])
    error = [max(abs(keys[i][d] - approximate[i][d]) for i in positions) for d in range(width)]
    return Page(
        index, positions, mean, value, coded, centre.tolist(), step.tolist(), codes[:, coded].astype(int).tolist(),
        np.abs(k).max(axis=0).tolist(), approximate, error,
    )  # fmt: skip
