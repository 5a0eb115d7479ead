"""The life of a store as a rule-based state machine, for the chosen target."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from .machine import machine_for

if TYPE_CHECKING:
    from .target import Target


def test_life_of_a_store(target: Target) -> None:
    """Any sequence of operations leaves the store that the tokens alone would have given."""
    examples = max(3, round(settings.default.max_examples * 1.0))
    run_state_machine_as_test(machine_for(target), settings=settings(max_examples=examples, stateful_step_count=20))
