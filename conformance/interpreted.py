"""kiv-fast with its decode steps in Triton, run by Triton's interpreter: ``--impl fast-interpreted``.

Every buffer of a step is poisoned before it: what a kernel reads and has not written shows as NaN, or a token far away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kiv_fast import FastPool
from kiv_fast.memory.scratch import Scratch
from kiv_fast.ops import OpsChoice
from kiv_fast.ops.triton import KINDS, TritonDecoder
from kiv_fast.tuning import Tuning

from . import interpreter as interpreter  # for its speed
from .recorded import RecordedGraphs

if TYPE_CHECKING:
    import torch
    from kiv_fast.memory.ledger import Account
    from kiv_fast.shape import Shape
    from kiv_reference import KIVConfig

POISON = -1_000_003
"""Of integers: no place, page or count."""


class Interpreted(OpsChoice):
    """Triton where it can serve, torch else."""

    def __init__(self, tuning: Tuning, graphs: Any) -> None:
        super().__init__("torch", tuning)
        self._recorded = graphs

    def decoder_of(self, shape: Shape) -> TritonDecoder | None:
        return TritonDecoder(self._recorded) if shape.dtype in KINDS else None


class Poisoned(Scratch):
    """Buffers that never have in them what the last use left, but for those that a step leaves as it found them."""

    def __init__(self, account: Account) -> None:
        super().__init__(account)
        self._open: dict[str, torch.Tensor] = {}  # those of steps

    def take(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, fill: int | None = None
    ) -> torch.Tensor:
        taken = super().take(name, shape, dtype, device, fill)
        if fill is None:
            self._open[name] = taken
            _poison(taken)
        return taken

    def poison(self) -> None:
        """Spoil what a step may not read before it has written it."""
        for taken in self._open.values():
            _poison(taken)


def _poison(tensor: torch.Tensor) -> None:
    tensor.fill_(float("nan") if tensor.is_floating_point() else POISON)


def pool(config: KIVConfig) -> FastPool:
    """Return a pool that decodes in Triton wherever it can."""
    steps = (0.0, 0.3, 2.0)[config.candidate_tokens % 3]  # no row is kept on the device; few; as many as by default
    made = FastPool(config, tuning=Tuning(device_row_steps=steps), ops="torch")
    scratch, aside = Poisoned(made.scratch.account), Poisoned(made.aside.account)

    def poison() -> None:
        scratch.poison()
        aside.poison()

    made.scratch, made.aside = scratch, aside
    made.ops = Interpreted(made.tuning, RecordedGraphs(poison))
    return made
