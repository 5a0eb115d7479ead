"""How a mutant of a Triton kernel is made: the interpreter is given another text of it."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest import mock

from conformance.interpreter import InterpretedFunction

from .source import Fault, replaced

if TYPE_CHECKING:
    from collections.abc import Generator


@dataclass(frozen=True)
class KernelFault(Fault):
    """A fault of a kernel, or of a function that kernels call."""

    def check(self) -> None:
        """Raise if the fault can no longer be made."""
        self._text()

    def _text(self) -> tuple[InterpretedFunction[Any], list[str], int]:
        kernel = self.thing()
        assert isinstance(kernel, InterpretedFunction), self.where
        lines, first = inspect.getsourcelines(kernel.fn)
        return kernel, replaced("".join(lines), self.old, self.new, self.where).splitlines(keepends=True), first

    @contextmanager
    def applied(self) -> Generator[None]:
        """Give the kernel the fault while this lasts."""
        kernel, lines, first = self._text()
        real = inspect.getsourcelines

        def faulty(thing: Any) -> tuple[list[str], int]:
            return (lines, first) if thing is kernel.fn else real(thing)

        with mock.patch("inspect.getsourcelines", faulty):
            kernel.rewritten_fn[kernel.fn] = kernel.rewriter.rewrite_ast()
        try:
            yield
        finally:
            del kernel.rewritten_fn[kernel.fn]
