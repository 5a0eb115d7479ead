"""Triton's interpreter, several times faster by what it need not do again and again: it takes a second for a step.

It has to be imported before Triton, or `TRITON_INTERPRET` be set.
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
core: Any = language.core

assert isinstance(language.zeros, InterpretedFunction), "set TRITON_INTERPRET=1: Triton was imported before"

_real_launch, _real_call = InterpretedFunction.__getitem__, InterpretedFunction.__call__
_real_dtype = interpreter._get_np_dtype
_real_block, _real_tensor = core.block_type.__init__, core.tensor.__init__

_patched: set[Any] = set()
_numbers = cache(_real_dtype)
_blocks: dict[Any, dict[str, Any]] = {}
_shapes: dict[str, tuple[Any, ...]] = {}


def hasten() -> None:
    """Change Triton's interpreter in this process."""
    InterpretedFunction.__getitem__, InterpretedFunction.__call__ = _launch, _call
    interpreter._get_np_dtype = _dtype
    core.block_type.__init__, core.tensor.__init__ = _block, _tensor
    # Whether a sum or product of integers overflows is worked out, and looked at with `debug` alone.
    assert not interpreter.InterpreterOptions.debug
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)


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


def _dtype(of: Any) -> Any:
    """Return numpy's name of a dtype; Triton makes a table of all of them for each operation."""
    return _numbers(of) if type(of) is language.dtype else _real_dtype(of)


def _block(self: Any, element_ty: Any, shape: Any) -> None:
    """Make a type of blocks; there are few of them, and nothing changes one."""
    sizes = [size.value if type(size) is core.constexpr else size for size in shape]
    known = _blocks.get(key := (str(element_ty), *sizes))
    if known is None:
        _real_block(self, element_ty, shape)
        _blocks[key] = self.__dict__
    else:
        self.__dict__ = known


def _tensor(self: Any, handle: Any, of: Any) -> None:
    """Make a tensor; what tells its shape is that of others of its type."""
    known = _shapes.get(name := str(of))
    if known is None:
        _real_tensor(self, handle, of)
        _shapes[name] = self.shape, self.numel, self.dtype
    else:
        self.handle, self.type = handle, of
        self.shape, self.numel, self.dtype = known
