"""What caches of rows make of the reads of all KV heads under one C and R, and the tables of `locality`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .recency import RECENT_STEPS, Outcome, Policy, origins, simulate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kiv_hf import KIVConfig
    from numpy.typing import NDArray

    from .locality_reads import HeadReads

    Floats = NDArray[np.float64]

FACTORS = (1, 2, 4)
"""Sizes of the caches, in C and R rows."""

DOUBLE = FACTORS.index(2)
BUS_GB_PER_S = 25
LRU = Policy("rows")
POLICIES = (
    LRU,
    Policy("rows, sets of 8", ways=8),
    Policy("blocks of 4", 4),
    Policy("blocks of 8", 8),
    Policy("blocks of 16", 16),
)
AFTER = (2, 3, 5, 9, 17, 33)
"""Steps after a cold start, counted from 1, that are shown."""

KINDS = ("candidates", "selected")
"""What is read of keys and of values: the lists of `HeadReads`."""


@dataclass(frozen=True)
class Served:
    """What caches of keys and of values did, an outcome for each head."""

    candidates: list[Outcome]
    selected: list[Outcome]


class Budget:
    """The reads of all heads under one C and R, and what caches make of them.

    Attributes
    ----------
    candidates, selected : int
        C and R.
    measured : slice
        The steps after the warm-up.
    """

    def __init__(self, config: KIVConfig, heads: Sequence[HeadReads], warmup: int) -> None:
        assert config.retrieve_tokens is not None
        self.candidates, self.selected = config.candidate_tokens, config.retrieve_tokens
        self.heads = heads
        self.measured = slice(warmup, None)
        self._page_tokens = config.page_tokens
        self.cold_tokens = heads[0].cold_pages[-1] * config.page_tokens
        self._served = {policy: self._serve(policy) for policy in POLICIES}

    def _serve(self, policy: Policy) -> Served:
        def outcomes(kind: str) -> list[Outcome]:
            sizes = [factor * getattr(self, kind) for factor in FACTORS]
            return [simulate(policy, getattr(head, kind), sizes) for head in self.heads]

        return Served(*map(outcomes, KINDS))

    def wanted(self, kind: str) -> Floats:
        """Count the rows that the measured steps want of each head, float64 [heads]."""
        return np.array([sum(rows.size for rows in getattr(head, kind)[self.measured]) for head in self.heads], float)

    def rates(self, policy: Policy, kind: str) -> Floats:
        """Return hit rates of the measured steps, float64 [heads, sizes]."""
        hits = [outcome.hits[self.measured].sum(axis=0) for outcome in getattr(self._served[policy], kind)]
        return np.stack(hits) / self.wanted(kind)[:, None]

    def mean_rates(self, policy: Policy, kind: str) -> list[float]:
        """Return the share of all rows wanted that caches of each size held."""
        wanted = self.wanted(kind)
        return (wanted @ self.rates(policy, kind) / wanted.sum()).tolist()

    def known(self, kind: str) -> list[float]:
        """Return the share of rows wanted that the step before, the last few, and any earlier step wanted."""
        found = [origins(getattr(head, kind)) for head in self.heads]
        total = self.wanted(kind).sum()
        return [float(sum(part[self.measured].sum() for part in parts) / total) for parts in zip(*found, strict=True)]

    def fetched_bytes(self, policy: Policy) -> Floats:
        """Return bytes over the bus, all heads together, float64 [steps, sizes]."""
        served = self._served[policy]
        keys = [o.fetched * head.key_bytes for o, head in zip(served.candidates, self.heads, strict=True)]
        values = [o.fetched * head.value_bytes for o, head in zip(served.selected, self.heads, strict=True)]
        return np.sum([*keys, *values], axis=0, dtype=float)

    def wanted_bytes(self, first: Sequence[int] | None = None) -> Floats:
        """Return bytes that steps without a cache read, all heads together, float64 [steps].

        With `first`, a number for each step, only those of cold tokens from that on.
        """
        starts = first or [0] * len(self.heads[0].cold_pages)
        total = np.zeros(len(starts))
        for head in self.heads:
            for kind, row_bytes in zip(KINDS, (head.key_bytes, head.value_bytes), strict=True):
                pairs = zip(getattr(head, kind), starts, strict=True)
                total += [row_bytes * int((rows >= at).sum()) for rows, at in pairs]
        return total

    def held_bytes(self) -> int:
        """Count the bytes of caches of C and R rows for all heads."""
        return sum(self.candidates * head.key_bytes + self.selected * head.value_bytes for head in self.heads)

    def new_page_share(self) -> float | None:
        """Return the share of what steps with a new cold page fetch that lies in it; None without such a step."""
        pages = np.array(self.heads[0].cold_pages)
        steps = np.flatnonzero(np.diff(pages, prepend=pages[0]))
        before = (np.concatenate([pages[:1], pages[:-1]]) * self._page_tokens).tolist()
        inside, fetched = self.wanted_bytes(before)[steps], self.fetched_bytes(LRU)[steps, DOUBLE]
        return float(inside.sum() / fetched.sum()) if steps.size else None


def reads_row(budget: Budget) -> Iterator[tuple[Any, ...]]:
    """Yield the row of the first table."""
    blocks = sum(len(head.candidates) for head in budget.heads)
    widened = sum(head.widened for head in budget.heads) / blocks
    read = float(budget.wanted_bytes()[budget.measured].mean()) / 1e6
    known = [share for kind in KINDS for share in budget.known(kind)]
    share = budget.candidates / budget.cold_tokens
    yield budget.candidates, budget.selected, share, widened, *known, read, read / BUS_GB_PER_S


def cache_rows(budget: Budget) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of the second table."""
    for policy in POLICIES:
        rates = [rate for kind in KINDS for rate in budget.mean_rates(policy, kind)]
        worst = [float(budget.rates(policy, kind)[:, DOUBLE].min()) for kind in KINDS]
        moved: list[float] = (budget.fetched_bytes(policy)[budget.measured].mean(axis=0) / 1e6).tolist()
        yield budget.candidates, policy.name, *rates, *worst, *moved, moved[DOUBLE] / BUS_GB_PER_S


def cold_row(budget: Budget) -> Iterator[tuple[Any, ...]]:
    """Yield the row of the third table."""
    moved = budget.fetched_bytes(LRU)[:, DOUBLE]
    shares = [float(moved[step - 1] / moved[0]) if step <= len(moved) else None for step in AFTER]
    after = float(moved[budget.measured].mean() / moved[0])
    held = FACTORS[DOUBLE] * budget.held_bytes() / 1e6
    yield budget.candidates, held, float(moved[0]) / 1e6, *shares, after, budget.new_page_share()


RECENT = f"last {RECENT_STEPS} steps"
TABLES = (
    (
        reads_row,
        "What a step reads, and the share of it that earlier steps read",
        *("C", "R", "C ÷ cold tokens", "heads widened", "keys: step before", RECENT, "any step"),
        *("values: step before", RECENT, "any step", "MB a step", f"ms at {BUS_GB_PER_S} GB/s"),
    ),
    (
        cache_rows,
        "Hit rates, and MB a step over the bus, with caches for each KV head of C and R rows, 2 C and 2 R, 4 C and 4 R",
        *("C", "cache of", "keys, C", "2 C", "4 C", "values, R", "2 R", "4 R", "worst head's keys, 2 C"),
        *("worst head's values, 2 R", "MB, C", "2 C", "4 C", f"ms at {BUS_GB_PER_S} GB/s, 2 C"),
    ),
    (
        cold_row,
        "After a cold start, with 2 C and 2 R rows: MB over the bus as a share of the first step's",
        *("C", "held, MB", "first step, MB", *(f"step {step}" for step in AFTER), "measured steps"),
        "of a step with a new cold page: in that page",
    ),
)


def by_layer(budget: Budget) -> dict[str, list[float]]:
    """Return mean hit rates of keys in each layer at 2 C, rows least recently used."""
    layers = np.array([head.layer for head in budget.heads])
    rates = budget.rates(LRU, KINDS[0])[:, DOUBLE]
    return {
        "layers": np.unique(layers).tolist(),
        "keys": [float(rates[layers == layer].mean()) for layer in np.unique(layers)],
    }
