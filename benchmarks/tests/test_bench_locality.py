"""Simulated caches against ones that hold rows one by one; what is read against a store's own account of it."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks.locality_tables import POLICIES
from benchmarks.recency import GOLDEN, RECENT_STEPS, Policy, origins, simulate

if TYPE_CHECKING:
    from benchmarks.recency import Rows

TOKENS, STEPS = 600, 40


def wandering(seed: int, wanted: int = 90) -> list[Rows]:
    """Return steps that want rows alike, some of them more and some none."""
    made = np.random.default_rng(seed)
    liked = made.standard_normal(TOKENS)
    steps = list[np.ndarray]()
    for step in range(STEPS):
        liked += 0.3 * made.standard_normal(TOKENS)
        count = 0 if step == 7 else wanted * (1 + step % 3 // 2)
        steps.append(np.sort(np.argsort(-liked)[:count]).astype(np.int32))
    return steps


class Naive:
    """Sets of blocks, each in the order of their last use."""

    def __init__(self, policy: Policy, size: int) -> None:
        blocks = size // policy.block_tokens
        self.ways = policy.ways or blocks
        self.sets = [OrderedDict[int, None]() for _ in range(max(1, blocks // self.ways) if self.ways else 1)]

    def chosen(self, block: int) -> OrderedDict[int, None]:
        return self.sets[(block * GOLDEN % 2**32) * len(self.sets) // 2**32]

    def serve(self, rows: list[int], block_tokens: int) -> tuple[int, int]:
        """Return the rows held, and those fetched."""
        hits = sum(row // block_tokens in self.chosen(row // block_tokens) for row in rows)
        wanted = sorted({row // block_tokens for row in rows})
        missed = sum(block not in self.chosen(block) for block in wanted)
        for block in wanted:
            self.chosen(block)[block] = None
            self.chosen(block).move_to_end(block)
        for one in self.sets:
            while len(one) > self.ways:
                one.popitem(last=False)
        return hits, missed * block_tokens


@pytest.mark.parametrize("policy", [*POLICIES, Policy("blocks, sets", 4, 2)], ids=lambda policy: policy.name)
def test_a_cache_holds_what_one_holds_that_moves_rows_one_by_one(policy: Policy) -> None:
    reads, sizes = wandering(seed=1), (3, 64, 96, 200, 4 * TOKENS)
    found = simulate(policy, reads, sizes)
    for i, size in enumerate(sizes):
        naive = Naive(policy, size)
        for step, rows in enumerate(reads):
            told = found.hits[step, i], found.fetched[step, i]
            assert told == naive.serve(rows.tolist(), policy.block_tokens), (policy, size, step)


def test_an_unbounded_cache_misses_what_no_step_wanted_before() -> None:
    reads = wandering(seed=2)
    hits = simulate(POLICIES[0], reads, [TOKENS]).hits[:, 0]
    before, recent, ever = origins(reads)
    assert ever.tolist() == hits.tolist()
    sets = [set(rows.tolist()) for rows in reads]
    for step, rows in enumerate(sets):
        assert before[step] == len(rows & set().union(*sets[max(0, step - 1) : step]))
        assert recent[step] == len(rows & set().union(*sets[max(0, step - RECENT_STEPS) : step]))
