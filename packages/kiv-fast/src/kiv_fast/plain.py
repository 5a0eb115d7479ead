"""Public calls work on plain tensors: without gradients, inference mode or autocast, whatever is around them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from kiv_reference.errors import KIVBudgetError, refuse

P = ParamSpec("P")
Out = TypeVar("Out")


def plain_tensors(method: Callable[P, Out]) -> Callable[P, Out]:
    """Run `method` outside inference mode and autocast, without gradients: a store may go on outside."""

    @wraps(method)
    def exact(*args: P.args, **kwargs: P.kwargs) -> Out:
        try:
            autocast = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
            if not (autocast or torch.is_grad_enabled() or torch.is_inference_mode_enabled()):
                return method(*args, **kwargs)  # as `generate` calls it: there is nothing to switch
            with torch.inference_mode(False), torch.no_grad():
                if not autocast:
                    return method(*args, **kwargs)
                with ExitStack() as stack:
                    for kind in ("cpu", "cuda"):  # autocast would round what SPEC 1.2 computes in float32
                        if torch.is_autocast_enabled(kind):
                            stack.enter_context(torch.autocast(kind, enabled=False))
                    return method(*args, **kwargs)
        except RuntimeError as error:
            if "DefaultCPUAllocator" not in str(error):
                raise
            rule = "a call needs memory of the machine (SPEC 10.2)"
            remedy = "Free memory, hand over fewer tokens at once, or give the cache budgets that it can have."
            raise refuse(KIVBudgetError, rule, f"from torch: {str(error)[-160:]}", remedy) from error

    return exact
