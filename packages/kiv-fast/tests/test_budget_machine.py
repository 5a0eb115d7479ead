"""Stores of one pool under tight budgets and on a failing disk, beside those of the reference (SPEC 10).

What is refused changes nothing, what was taken in can be attended to and answered as the reference answers, the bits
are those of a pool without budgets, and every byte comes back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch
from fast_helpers import SCALE, assert_close, draw
from faulty_disk import Faulty, Method
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from kiv_fast import FastPool, Tuning
from kiv_reference import KIVConfig, ReferencePool
from kiv_reference.errors import KIVBudgetError, KIVStorageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kiv_fast.store import FastStore
    from kiv_reference.store import ReferenceStore

MOST_STORES, MOST_TOKENS, MOST_ROWS = 3, 160, 3
PICK = st.integers(0, MOST_STORES - 1)
SMALL = Tuning(chunk_bytes=4096, together_bytes=1 << 15, row_steps=1, row_share=2)
Answer = TypeVar("Answer")
CONFIG = dict[str, Any](hot_tokens=8, sink_tokens=2, page_tokens=4, index_channels=6, candidate_tokens=20)


class BudgetMachine(RuleBasedStateMachine):
    """A store of the tight pool, its twin of the reference, and another of kiv_fast that has room for everything.

    In float64 kiv_fast and the reference retrieve the same. In float32 rounding may break a tie otherwise: there the
    reference answers for what was retrieved.
    """

    @initialize(
        ram=st.integers(0, 40_000),
        prefill=st.sampled_from(["exact", "retrieve"]),
        dtype=st.sampled_from([torch.float64, torch.float32]),
    )
    def start(self, ram: int, prefill: str, dtype: torch.dtype) -> None:
        self.dtype = dtype
        more = dict[str, Any](retrieve_tokens=7, prefill=prefill, query_block_tokens=8, exact_suffix_tokens=4)
        roomy = KIVConfig(**CONFIG, **more)
        self.disk, self.number = Faulty(), 0
        self.pools = (
            FastPool(KIVConfig(**CONFIG, **more, ram_bytes=ram), self.disk, SMALL),
            ReferencePool(roomy),
            FastPool(roomy, tuning=SMALL),
        )
        tight, reference, free = self.pools
        self.stores = [(tight.layer_store(), reference.layer_store(), free.layer_store()) for _ in range(2)]
        self.queries: dict[int, torch.Tensor] = {}  # of the last append, by the number of the store

    def pick(self, number: int) -> tuple[int, FastStore, ReferenceStore, FastStore]:
        number %= len(self.stores)
        return (number, *self.stores[number])

    def attempt(self, call: Callable[[], Answer], *refusals: type[Exception]) -> tuple[bool, Answer | None]:
        """Make a call of the tight pool; whether it was not refused. A disk that failed is repaired."""
        armed = self.disk.calls[self.disk.method] < self.disk.at
        lengths = [store.length for store, *_ in self.stores]
        try:
            return True, call()
        except (KIVBudgetError, KIVStorageError) as error:
            refusal = error
        failed = armed and self.disk.calls[self.disk.method] >= self.disk.at
        if not isinstance(refusal, KIVStorageError if failed else refusals):
            raise refusal
        assert [store.length for store, *_ in self.stores] == lengths
        return False, None

    @rule(tier=st.sampled_from([0, 1, 2, 2]), left=st.none() | st.integers(0, 40))
    def squeeze(self, tier: int, left: int | None) -> None:
        """Leave a multiple of 256 bytes, or no limit, but for RAM that decides how a store is made."""
        ledger = self.pools[0].ledger
        if left is not None or tier != 1:
            limit = None if left is None else ledger.used[tier] + 256 * left
            device, ram, disk = (limit if n == tier else old for n, old in enumerate(ledger._limits))
            ledger._limits = device, ram, disk

    @rule(method=st.sampled_from(["create", "allocate", "write", "read"]), calls=st.integers(1, 12))
    def break_the_disk(self, method: Method, calls: int) -> None:
        self.disk.method, self.disk.at = method, self.disk.calls[method] + calls

    @rule(pick=PICK, n=st.sampled_from([1, 1, 1, 2, 5, 9, 30, 70]), attends=st.booleans())
    def append(self, pick: int, n: int, attends: bool) -> None:
        number, store, *twins = self.pick(pick)
        if store.length + n > MOST_TOKENS:
            return
        batch = 1 if store.state is None else store.state.shape.batch
        self.number += 1
        key, value, query = draw(self.number, n, batch, dtype=self.dtype)
        done, _ = self.attempt(lambda: store.append(key, value), KIVBudgetError)
        if done:
            for twin in twins:
                twin.append(key, value)
            self.queries[number] = query
            if attends:
                self.attend(pick)

    @rule(pick=PICK)
    def attend(self, pick: int) -> None:
        number, store, reference, free = self.pick(pick)
        if number in self.queries:
            expected = free.attend(self.queries[number], scale=SCALE)
            done, output = self.attempt(lambda: store.attend(self.queries[number], scale=SCALE))
            if not done:  # the second time on a disk that works
                done, output = self.attempt(lambda: store.attend(self.queries[number], scale=SCALE))
            assert output is not None
            assert torch.equal(output, expected)
            given = None if self.dtype == torch.float64 else store.report
            assert_close(output, reference.attend(self.queries[number], scale=SCALE, given=given))
            for mine, right in zip(store.report.blocks, reference.report.blocks, strict=True):
                assert torch.equal(mine.candidate_positions, right.candidate_positions)
                assert torch.equal(mine.selected_positions, right.selected_positions)

    @rule(pick=PICK, part=st.floats(0, 1))
    def crop(self, pick: int, part: float) -> None:
        number, store, *twins = self.pick(pick)
        length = round(store.length * part)
        if self.attempt(lambda: store.crop(length), KIVBudgetError)[0]:
            for twin in twins:
                twin.crop(length)
            self.queries.pop(number, None)

    @rule(pick=PICK, repeats=st.integers(1, MOST_ROWS))
    def repeat(self, pick: int, repeats: int) -> None:
        number, store, *twins = self.pick(pick)
        if store.state is None or store.state.shape.batch * repeats > MOST_ROWS:
            return
        if self.attempt(lambda: store.repeat_interleave(repeats), KIVBudgetError)[0]:
            for twin in twins:
                twin.repeat_interleave(repeats)
            if number in self.queries:
                self.queries[number] = self.queries[number].repeat_interleave(repeats, dim=0)

    @rule(pick=PICK, row=st.integers(0, MOST_ROWS - 1))
    def select(self, pick: int, row: int) -> None:
        number, store, *twins = self.pick(pick)
        if store.state is None:
            return
        rows = torch.tensor([row % store.state.shape.batch])
        if self.attempt(lambda: store.select(rows), KIVBudgetError)[0]:
            for twin in twins:
                twin.select(rows)
            if number in self.queries:
                self.queries[number] = self.queries[number][rows]

    @rule(pick=PICK)
    def fork(self, pick: int) -> None:
        number, store, reference, free = self.pick(pick)
        if len(self.stores) < MOST_STORES:
            _, copy = self.attempt(store.fork, KIVBudgetError)
            if copy is not None:
                self.stores.append((copy, reference.fork(), free.fork()))
                if number in self.queries:
                    self.queries[len(self.stores) - 1] = self.queries[number]

    @rule(pick=PICK)
    def reset(self, pick: int) -> None:
        number, store, *twins = self.pick(pick)
        for one in (store, *twins):
            one.reset()
        self.queries.pop(number, None)

    @invariant()
    def budgets_hold(self) -> None:
        if hasattr(self, "pools"):
            held, limits = self.pools[0].memory(), self.pools[0].ledger._limits
            assert all(limit is None or have <= limit for have, limit in zip(held, limits, strict=True))
            for store, *twins in self.stores:
                assert all(store.tokens()[:2] == twin.tokens()[:2] for twin in twins)

    def teardown(self) -> None:
        if not hasattr(self, "pools"):
            return
        for number in range(len(self.stores)):
            self.attend(number)
            self.append(number, 1, True)  # a step that retrieves, if there is room for it
        for store in (store for stores in self.stores for store in stores):
            store.reset()
        assert not self.disk.open, "a file stayed open"
        for pool in self.pools:
            assert pool.memory() == (0, 0, 0)


def test_stores_under_budgets() -> None:
    steps = settings(max_examples=200, stateful_step_count=30, deadline=None, derandomize=True)
    run_state_machine_as_test(BudgetMachine, settings=steps)
