"""A state machine over the life of a store, for any implementation to run.

``machine_for(target)`` is a `RuleBasedStateMachine`; its model is the oracle's plain list of tokens. Every answer is
checked by `checks`, and these invariants after every step:

- state depends only on the tokens (SPEC 2.1): a rule rebuilds a store from its tokens in other chunks;
- a fork never sees its sibling (SPEC 9.4): every store's last answer can be had again, bit for bit;
- budgets hold (SPEC 10.2), and the parts add up (SPEC 10.3);
- unread values never matter (SPEC 4.7): a rule poisons them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from hypothesis import event, note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from .answers import same_bits
from .checks import check_state
from .data import EXACT_KINDS, FLOAT_KINDS, MASKS, VALUES, Recipe, Shape, mask, poison
from .driver import Driver
from .expect import replays_alike
from .oracle_index import EVERY
from .refill import refill, tokens_of
from .strategies import SCALES, configs, shapes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .target import Target

MOST_STORES, MOST_TOKENS, MOST_SEQUENCES = 3, 140, 4
PICK = st.integers(0, MOST_STORES - 1)


class Asked(NamedTuple):
    """What an attend is asked with, beside its queries."""

    scale: float
    softcap: float | None
    sinks: bool
    remaining: int | None


ASKED = st.builds(
    Asked,
    st.sampled_from(SCALES),
    st.sampled_from([None, None, 3.0]),
    st.booleans(),
    st.sampled_from([None, None, 0, 1, 99]),
)


class StoreMachine(RuleBasedStateMachine):
    """Stores of one pool; subclasses set `target`."""

    target: ClassVar[Target]

    @initialize(data=st.data(), exact=st.booleans(), groups=st.sampled_from([1, 2]))
    def start(self, data: st.DataObject, exact: bool, groups: int) -> None:
        """Begin with an empty store."""
        self.exact = exact
        config = data.draw(configs(exact), "config")
        self.shape = data.draw(shapes(width=st.sampled_from([4, 5, 8]), groups=groups), "shape")
        self.drivers = [Driver(self.target, config, exact)]

    def pick(self, index: int) -> Driver:
        """Choose one of the stores."""
        return self.drivers[index % len(self.drivers)]

    def shape_of(self, driver: Driver) -> Shape:
        """Return the shape of a store's next tokens: it must be that of its tokens so far."""
        o, s = driver.oracle, self.shape
        batch = len(o.valid) if o.valid else s.batch
        return Shape(batch, s.heads, s.groups, s.width, s.value_width, s.dtype)

    @rule(
        pick=PICK,
        n=st.sampled_from([1, 1, 1, 2, 3, 7, 20]),
        kind=st.integers(0, 9),
        seed=st.integers(0, 999),
        padding=st.sampled_from(["none", "none", *MASKS]),
        asked=st.sampled_from([True, True, False]).flatmap(lambda attends: ASKED if attends else st.none()),
    )
    def append(self, pick: int, n: int, kind: int, seed: int, padding: str, asked: Asked | None) -> None:
        """Append tokens, and attend most often."""
        driver = self.pick(pick)
        n = min(n, MOST_TOKENS - driver.oracle.length)
        if n < 1:
            return
        kinds = EXACT_KINDS if self.exact else FLOAT_KINDS
        shape = self.shape_of(driver)
        tokens = Recipe(kinds[kind % len(kinds)], seed, values=VALUES[seed % len(VALUES)]).make(shape, n)
        flags = None if self.exact else mask(padding, shape.batch, n, seed)
        tokens = poison(tokens._replace(valid=flags))
        driver.append(tokens)
        if asked is not None:
            logits = torch.linspace(-1, 1, shape.heads * shape.groups) if asked.sinks else None
            driver.attend(tokens.query, asked.scale, asked.softcap, logits, remaining_prompt_tokens=asked.remaining)
            event(f"call of {'one' if n == 1 else 'several'}, cold pages: {min(driver.oracle.parts()[2], 1)}")

    @rule(pick=PICK, kind=st.integers(0, 9), seed=st.integers(0, 999), given=st.sampled_from([True, True, False]))
    def sample(self, pick: int, kind: int, seed: int, given: bool) -> None:
        """Go on to the next multiple of 64, and give or do not give the query of the position before it (SPEC 3.2)."""
        driver = self.pick(pick)
        length = driver.oracle.length
        stop = length + EVERY - length % EVERY
        if stop > MOST_TOKENS:
            return
        kinds = EXACT_KINDS if self.exact else FLOAT_KINDS
        tokens = Recipe(kinds[kind % len(kinds)], seed).make(self.shape_of(driver), stop - length)
        n = tokens.key.shape[2] - 1
        if n:
            driver.append(tokens.slice(0, n))
        driver.append(tokens.slice(n, n + 1))
        if given:
            driver.attend(tokens.query[:, :, n:], 0.5)

    @rule(pick=PICK, part=st.floats(0, 1))
    def crop(self, pick: int, part: float) -> None:
        """Crop to a part of the tokens."""
        driver = self.pick(pick)
        driver.crop(round(driver.oracle.length * part))

    @rule(pick=PICK, back=st.integers(1, 20), kind=st.integers(0, 9), seed=st.integers(0, 999))
    def regret(self, pick: int, back: int, kind: int, seed: int) -> None:
        """Crop, and write other tokens in place of those cropped; then one query."""
        driver = self.pick(pick)
        length = driver.oracle.length
        if length < 2:
            return
        driver.crop(max(0, length - back))
        kinds = EXACT_KINDS if self.exact else FLOAT_KINDS
        recipe = Recipe(kinds[kind % len(kinds)], seed, values=VALUES[seed % len(VALUES)])
        tokens = recipe.make(self.shape_of(driver), min(back, length) + 1)
        last = tokens.key.shape[2] - 1
        driver.append(tokens.slice(0, last))
        driver.append(tokens.slice(last, last + 1))
        driver.attend(tokens.query[:, :, last:], 0.5)

    @rule(pick=PICK, seed=st.integers(0, 99))
    def reorder(self, pick: int, seed: int) -> None:
        """Copy sequences over each other, as beams do."""
        driver = self.pick(pick)
        batch = len(driver.oracle.valid)
        if batch:
            driver.reorder([(b * 7 + seed) % batch if seed % 3 else seed % batch for b in range(batch)])

    @rule(pick=PICK, rows=st.lists(st.integers(0, 7), min_size=1, max_size=MOST_SEQUENCES))
    def select(self, pick: int, rows: list[int]) -> None:
        """Choose sequences."""
        driver = self.pick(pick)
        if driver.oracle.valid:
            driver.select([row % len(driver.oracle.valid) for row in rows])

    @rule(pick=PICK, repeats=st.sampled_from([1, 2, 3]))
    def repeat(self, pick: int, repeats: int) -> None:
        """Repeat sequences."""
        driver = self.pick(pick)
        if 0 < len(driver.oracle.valid) * repeats <= MOST_SEQUENCES:
            driver.repeat_interleave(repeats)

    @rule(pick=PICK)
    def fork(self, pick: int) -> None:
        """Fork."""
        if len(self.drivers) < MOST_STORES:
            self.drivers.append(self.pick(pick).fork())

    @rule(pick=PICK)
    def reset(self, pick: int) -> None:
        """Reset."""
        self.pick(pick).reset()

    @rule(pick=PICK, chunk=st.integers(1, 30))
    def rebuild(self, pick: int, chunk: int) -> None:
        """Feed the tokens in other chunks to a second store: state depends on nothing else (SPEC 2.1)."""
        driver = self.pick(pick)
        if driver.oracle.length == 0:
            return
        other = self._refill(driver, chunk, driver.oracle.values)
        if driver.last is not None:
            query, arguments, *_ = driver.last
            other.attend(query, **arguments)
            if self.exact and driver.config.max_missed_mass is None:
                mine = [b.selected_positions.tolist() for b in driver.store.report.blocks]
                theirs = [b.selected_positions.tolist() for b in other.store.report.blocks]
                other.scene.require(mine == theirs, "2.1", "another selection", got=theirs, expected=mine)

    @rule(pick=PICK)
    def poison_unread_values(self, pick: int) -> None:
        """Check that unread values never matter (SPEC 4.7)."""
        driver = self.pick(pick)
        if driver.last is None or driver.config.tail != "none":
            return
        query, arguments, *_ = driver.last
        twins = [self._refill(driver, driver.oracle.length, v) for v in (driver.oracle.values, self._holes(driver))]
        clean, holed = (twin.store.attend(query, **arguments) for twin in twins)
        twins[1].scene.require(same_bits(clean, holed), "4.7", "a value that is not needed was read", got=holed)

    @precondition(lambda self: self.target.change_budgets is not None)
    @rule(divisor=st.sampled_from([1, 2, 4]))
    def change_budgets(self, divisor: int) -> None:
        """Move the pool to other budgets (SPEC 10.1)."""
        driver = self.drivers[0]
        assert self.target.change_budgets is not None, "the precondition"
        self.target.change_budgets(driver.pool, divisor)

    @rule(pick=PICK)
    def carry(self, pick: int) -> None:
        """Go on in a new store that takes the state of an old one (SPEC 9.8)."""
        driver = self.pick(pick)
        if driver.oracle.valid:
            driver.carry()

    def _refill(self, driver: Driver, chunk: int, values: Sequence[Sequence[Sequence[Sequence[float]]]]) -> Driver:
        """Return a store of a new pool with the same tokens but these values, the last call's tokens appended last."""
        other = Driver(self.target, driver.config, driver.exact)
        tokens = tokens_of(driver.oracle, self.shape.dtype, values)
        refill(other, driver.oracle, tokens, range(0, driver.oracle.length, chunk))
        return other

    def _holes(self, driver: Driver) -> list[list[list[Sequence[float]]]]:
        """Return the values, NaN where no block of the last call had to read them."""
        o = driver.oracle
        sinks, hot_first = driver.config.sink_tokens, None
        read: set[tuple[int, int, int]] = set()
        for block in driver.store.report.blocks:
            hot_first = sinks + block.cold_pages * driver.config.page_tokens
            for b in range(len(o.valid)):
                for h in range(len(o.values[0])):
                    if bool(block.streamed[b, h]):
                        read.update((b, h, i) for i in range(o.length))
                    read.update((b, h, i) for i in range(o.length) if i < sinks or i >= hot_first)
                    read.update((b, h, i) for i in block.selected_positions[b, h].tolist())
        return [
            [
                [v if (b, h, i) in read else [math.nan] * len(v) for i, v in enumerate(rows)]
                for h, rows in enumerate(row)
            ]
            for b, row in enumerate(o.values)
        ]

    @invariant()
    def state_is_that_of_the_tokens(self) -> None:
        """Check length, validity and partition of every store."""
        for driver in getattr(self, "drivers", []):
            check_state(driver.scene, driver.oracle)

    @invariant()
    def a_fork_never_sees_its_sibling(self) -> None:
        """Check that every store's last answer can be had again."""
        for driver in getattr(self, "drivers", []):
            driver.again()

    @invariant()
    def budgets_hold(self) -> None:
        """Check that the pool holds what its stores hold, within its budgets."""
        if not hasattr(self, "drivers"):
            return
        pool, config = self.drivers[0].pool, self.drivers[0].config
        held = pool.memory()
        limits = (config.device_bytes, config.ram_bytes, config.disk_bytes)
        scene = self.drivers[0].scene
        fits = all(limit is None or have <= limit for have, limit in zip(held, limits, strict=True))
        scene.require(fits, "10.2", "a budget is exceeded", got=held, budgets=limits)

    def teardown(self) -> None:
        """Repeat the whole log under other budgets: placement never changes a result (SPEC 10.1)."""
        if hasattr(self, "drivers") and self.drivers[0].operations.outputs:
            held = replays_alike(self.target, self.drivers[0])
            note(f"{held} budgets held the log")


def machine_for(target: Target) -> type[StoreMachine]:
    """Return the state machine of one implementation."""
    return type("Machine", (StoreMachine,), {"target": target})
