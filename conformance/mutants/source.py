"""How a mutant of the tiered implementation or of the binding is made: a few words of one function replaced.

The function's code is exchanged, not its name, so every module that imported it has the fault.
"""

from __future__ import annotations
import __future__

import importlib
import inspect
import re
import textwrap
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes
    ----------
    name : what is wrong, in a few words
    where : "module:function" or "module:Class.method"
    old, new : what its source says once, and what it says with the fault
    tests : files or node ids, one of which must fail, and options for pytest
    """

    name: str
    where: str
    old: str
    new: str
    tests: tuple[str, ...]

    def check(self) -> None:
        """Raise if the fault can no longer be made."""
        self._faulty()

    def _faulty(self) -> CodeType:
        function = self.function()
        source = textwrap.dedent(inspect.getsource(function))
        return code_of(function, replaced(source, self.old, self.new, self.where))

    @contextmanager
    def applied(self) -> Generator[None]:
        """Give the function the fault while this lasts."""
        function, faulty = self.function(), self._faulty()
        right, function.__code__ = function.__code__, faulty
        try:
            yield
        finally:
            function.__code__ = right

    def thing(self) -> Any:
        """Find where the fault goes."""
        module, _, path = self.where.partition(":")
        thing: Any = importlib.import_module(module)
        for name in path.split("."):
            thing = inspect.getattr_static(thing, name)
        return thing

    def function(self) -> FunctionType:
        """Find the function that it goes into."""
        thing: Any = self.thing()
        if isinstance(thing, cached_property):
            thing = thing.func
        elif isinstance(thing, property):
            thing = thing.fget
        found: Any = inspect.unwrap(thing)
        assert isinstance(found, FunctionType), self.where
        return found


def replaced(source: str, old: str, new: str, where: str) -> str:
    """Put a fault into a source, which has what it replaces once.

    Raises
    ------
    LookupError
        It has it not, or several times.
    """
    if source.count(old) != 1:
        raise LookupError(f"{where} has {old!r} {source.count(old)} times: change the mutant")
    return source.replace(old, new)


def clause(number: str, impl: str = "fast") -> tuple[str, ...]:
    """Return what the conformance suite says of a clause of SPEC.md, and for which implementation."""
    chapter, _, rest = number.partition(".")
    for path in Path(__file__).parent.parent.glob(f"test_ch{int(chapter):02d}_*.py"):
        found = re.search(rf"^class (Test_{chapter}_{rest}_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        if found is not None:
            return (f"conformance/{path.name}::{found[1]}", f"--impl={impl}", "--profile=kill")
    raise LookupError(f"SPEC {number} has no test class")


def code_of(function: FunctionType, source: str) -> CodeType:
    """Return what the definition in `source` compiles to, under the rules of the module that `function` comes from."""
    flags = __future__.annotations.compiler_flag
    whole = compile(source, function.__code__.co_filename, "exec", flags=flags, dont_inherit=True)
    codes = [one for one in whole.co_consts if isinstance(one, CodeType) and one.co_name == function.__name__]
    (code,) = codes
    assert code.co_freevars == function.__code__.co_freevars, function.__qualname__
    return code
