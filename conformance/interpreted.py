"""kiv-fast with its decode steps in Triton, run by Triton's interpreter: ``--impl fast-interpreted``.

Every buffer of a step is poisoned before it: what a kernel reads and has not written shows as NaN, or a token far away.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

os.environ["TRITON_INTERPRET"] = "1"

from kiv_fast import FastPool
from kiv_fast.memory.scratch import Scratch
from kiv_fast.ops import OpsChoice
from kiv_fast.ops.triton import KINDS, TritonDecoder
from kiv_fast.tuning import Tuning
from triton import language
from triton.runtime.interpreter import InterpretedFunction

if TYPE_CHECKING:
    import torch
    from kiv_fast.shape import Shape
    from kiv_reference import KIVConfig

assert isinstance(language.zeros, InterpretedFunction), "set TRITON_INTERPRET=1: Triton was imported before"

_patched: set[Any] = set()


def _launch(self: Any, grid: Any) -> Any:
    _patched.clear()
    return _real_launch(self, grid)


def _call(self: Any, *arguments: Any, **options: Any) -> Any:
    """Call a function of a kernel; the interpreter replaces Triton's language once, not each time."""
    if self.fn not in _patched:
        _patched.add(self.fn)
        return _real_call(self, *arguments, **options)
    return self.rewrite()(*arguments, **options)


_real_launch, InterpretedFunction.__getitem__ = InterpretedFunction.__getitem__, _launch
_real_call, InterpretedFunction.__call__ = InterpretedFunction.__call__, _call

POISON = -1_000_003
"""Of integers: no place, page or count."""


class Interpreted(OpsChoice):
    """Triton where it can serve, torch else."""

    def decoder_of(self, shape: Shape) -> TritonDecoder | None:
        return TritonDecoder() if shape.dtype in KINDS else None


class Poisoned(Scratch):
    """Buffers that never have in them what the last use left, but for those that a step leaves as it found them."""

    def take(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, fill: int | None = None
    ) -> torch.Tensor:
        taken = super().take(name, shape, dtype, device, fill)
        if fill is None:
            taken.fill_(float("nan") if taken.is_floating_point() else POISON)
        return taken


def pool(config: KIVConfig) -> FastPool:
    """Return a pool that decodes in Triton wherever it can."""
    steps = (0.0, 0.3, 2.0)[config.candidate_tokens % 3]  # no row is kept on the device; few; as many as by default
    made = FastPool(config, tuning=Tuning(device_row_steps=steps), ops="torch")
    made.ops = Interpreted("torch", made.tuning)
    made.scratch, made.aside = Poisoned(made.scratch.account), Poisoned(made.aside.account)
    return made
