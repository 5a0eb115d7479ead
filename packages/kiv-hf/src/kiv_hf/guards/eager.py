"""What stays outside the graphs of `torch.compile`, at no cost where nothing is compiled."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar, cast

import torch
from torch._C._dynamo import eval_frame

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
Out = TypeVar("Out")


def _always() -> bool:
    return True


# Whether Python's frames go to the compiler in this thread. The wrapper of `torch.compiler.disable` asks the same, and
# costs as much in a decode step as KIV's own Python. Where torch has another name for it, every call is wrapped.
_compiles: Callable[[], object] = getattr(eval_frame, "get_eval_frame_callback", _always)


def outside_graphs(function: Callable[P, Out]) -> Callable[P, Out]:
    """Run `function` as it is, with all that it calls, whatever around it is compiled."""
    apart = cast("Callable[P, Out]", torch.compiler.disable(function))

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Out:
        if torch.compiler.is_compiling() or _compiles() is not None:
            return apart(*args, **kwargs)
        return function(*args, **kwargs)

    return call
