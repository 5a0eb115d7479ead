"""Whether a forward pass still runs, told by the frames of its calls: no event marks the end of one that broke off."""

from __future__ import annotations

import sys
from types import FrameType

from torch import nn
from transformers import PreTrainedModel


def still_runs(frame: FrameType) -> bool:
    """Whether the forward pass that made the call of `frame` has not ended, by a return or by an exception.

    The pass is the innermost model around the call, or the outermost module where there is no model. Of a call that
    no module made the end cannot be known: it counts as running.
    """
    scope = _scope(frame)
    return scope is None or any(running is scope for running in _callers(sys._getframe()))


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
