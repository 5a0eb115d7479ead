"""Triton's interpreter, if this is imported before Triton; a third faster, by what it need not do again and again.

Deep in other calls, as under pytest, it is up to three times as fast (`_with_room`).
"""

from __future__ import annotations

import os
from functools import cache, partial
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

from triton import language
from triton.runtime import interpreter as _interpreter
from triton.runtime.interpreter import InterpretedFunction

interpreter: Any = _interpreter

assert isinstance(language.zeros, InterpretedFunction), "set TRITON_INTERPRET=1: Triton was imported before"

_patched: set[Any] = set()


def _with_room(launch: Any, *arguments: Any, **options: Any) -> Any:
    return launch(*arguments, **options)


# Python 3.11 and later map memory for frames in pieces of 16 KiB and give back each as soon as it is left: where a loop
# of the interpreter lies at the end of one, every call maps and unmaps it, at twice the time. A frame that wants more
# than a piece gets one of its own, with room for all that it calls.
_with_room.__code__ = _with_room.__code__.replace(co_stacksize=1 << 13)


def _launch(self: Any, grid: Any) -> Any:
    _patched.clear()
    return partial(_with_room, _real_launch(self, grid))


def _call(self: Any, *arguments: Any, **options: Any) -> Any:
    """Call a function of a kernel; Triton's language is replaced once in a launch, not in each call."""
    if self.fn not in _patched:
        _patched.add(self.fn)
        return _real_call(self, *arguments, **options)
    return self.rewrite()(*arguments, **options)


_real_launch, InterpretedFunction.__getitem__ = InterpretedFunction.__getitem__, _launch
_real_call, InterpretedFunction.__call__ = InterpretedFunction.__call__, _call
_real_dtype = interpreter._get_np_dtype
_numbers = cache(_real_dtype)


def _dtype(of: Any) -> Any:
    """Return numpy's name of a dtype; Triton makes a table of all of them for each operation."""
    return _numbers(of) if type(of) is language.dtype else _real_dtype(of)


interpreter._get_np_dtype = _dtype
