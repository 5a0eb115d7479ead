"""How a mutant is made: one name of the reference replaced, and put back."""

from __future__ import annotations

import inspect
import textwrap
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import TYPE_CHECKING, Any

from .source import code_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


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
    def applied(self) -> Generator[None]:
        """Give the reference the fault while this lasts."""
        with ExitStack() as stack:
            for owner, attribute, change in self.patches:
                original = owner.__dict__[attribute]
                stack.callback(setattr, owner, attribute, original)
                setattr(owner, attribute, change(original))
            yield


MUTANTS: list[Mutant] = []


def reworded(name: str, *places_and_words: Any, look: str = "") -> None:
    """Register a change of one function's text: (owner, attribute) once or more, then what it says once, and instead.

    The function's own module gives the names that it uses.
    """
    *places, old, new = places_and_words

    def change(original: FunctionType) -> FunctionType:
        source = textwrap.dedent(inspect.getsource(original))
        if source.count(old) != 1:
            raise LookupError(f"{original.__qualname__} has {old!r} {source.count(old)} times: change the mutant")
        code = code_of(original, source.replace(old, new))
        return FunctionType(code, original.__globals__, original.__name__, original.__defaults__)

    mutant(name, *places, look=look)(change)


def mutant(
    name: str, *places: tuple[Any, str], look: str = ""
) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    """Register a change of the functions at `places`: ``change(original)`` gives the faulty one."""

    def register(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
        MUTANTS.append(Mutant(name, tuple((owner, attribute, change) for owner, attribute in places), look))
        return change

    return register
