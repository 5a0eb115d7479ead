"""The life of a store as a rule-based state machine, for the chosen target."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from .machine import machine_for
from .profiles import examples

if TYPE_CHECKING:
    from .target import Target


def test_life_of_a_store(target: Target) -> None:
    """Any sequence of operations leaves the store that the tokens alone would have given."""
    long = settings(max_examples=max(3, examples()), stateful_step_count=20)
    run_state_machine_as_test(machine_for(target), settings=long)
