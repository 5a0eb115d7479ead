"""How a mutant is made: one name of the reference replaced, and put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Mutant:
    """A fault.

    Attributes
    ----------
    name : what is wrong, in a few words
    patches : (owner, attribute, from the original to its replacement)
    look : clause whose tests run first, to save time; all others follow
    """

    name: str
    patches: tuple[tuple[Any, str, Callable[[Any], Any]], ...]
    look: str = ""

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The reference has the fault while this lasts."""
        with ExitStack() as stack:
            for owner, attribute, change in self.patches:
                original = owner.__dict__[attribute]
                stack.callback(setattr, owner, attribute, original)
                setattr(owner, attribute, change(original))
            yield


MUTANTS: list[Mutant] = []


def mutant(
    name: str, *places: tuple[Any, str], look: str = ""
) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    """Register a change of the functions at `places`: ``change(original)`` gives the faulty one."""

    def register(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
        MUTANTS.append(Mutant(name, tuple((owner, attribute, change) for owner, attribute in places), look))
        return change

    return register
