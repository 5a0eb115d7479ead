"""What the frames of a call tell of its forward pass: whether it still runs, and which model makes it.

No event marks the end of a pass that broke off, and the cache is not told who calls it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

if TYPE_CHECKING:
    from types import FrameType


def still_runs(frame: FrameType) -> bool:
    """Tell whether the forward pass that made the call of `frame` has not ended, by a return or by an exception.

    The pass is the innermost model around the call, or the outermost module where there is no model. Of a call that
    no module made the end cannot be known: it counts as running.
    """
    scope = _scope(frame)
    here = sys._getframe()  # pyright: ignore[reportPrivateUsage]
    return scope is None or any(running is scope for running in _callers(here))


def calling_config() -> PreTrainedConfig | None:
    """Return the configuration of the innermost module around the call that has one, None if none has."""
    for caller in _callers(sys._getframe()):  # pyright: ignore[reportPrivateUsage]
        if caller.f_code.co_varnames[:1] == ("self",):
            owner = caller.f_locals.get("self")
            config = getattr(owner, "config", None) if isinstance(owner, nn.Module) else None
            if isinstance(config, PreTrainedConfig):
                return config
    return None


def calling_model() -> PreTrainedModel | None:
    """Return the outermost model around the call, None if there is none."""
    found: PreTrainedModel | None = None
    for caller in _callers(sys._getframe()):  # pyright: ignore[reportPrivateUsage]
        if caller.f_code.co_varnames[:1] == ("self",):
            owner = caller.f_locals.get("self")
            found = owner if isinstance(owner, PreTrainedModel) else found
    return found


def _callers(frame: FrameType | None) -> list[FrameType]:
    """Return `frame` and its callers, the innermost first."""
    frames: list[FrameType] = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames


def _scope(frame: FrameType) -> FrameType | None:
    outermost = None
    for caller in _callers(frame):
        if caller.f_code.co_varnames[:1] != ("self",):
            continue
        owner = caller.f_locals.get("self")
        if isinstance(owner, PreTrainedModel):
            return caller
        if isinstance(owner, nn.Module):
            outermost = caller
    return outermost
