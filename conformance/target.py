"""What is tested: an implementation chosen from outside."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from kiv_reference import KIVConfig, StorePool

KNOWN = {
    "reference": "kiv_reference:ReferencePool",
    "fast": "kiv_fast:FastPool",
    "fast-small-parts": "conformance.small_parts:pool",
    "fast-interpreted": "conformance.interpreted:pool",
}


@dataclass(frozen=True)
class Target:
    """An implementation.

    Attributes
    ----------
    name : as it was asked for on the command line
    device : where the tensors of the tests are
    factory : makes a pool from a configuration (`kiv_reference.contract.PoolFactory`)
    change_budgets : optional, ``(pool, divisor) -> None``, moves a live pool to one `divisor`-th of its budgets
    """

    name: str
    factory: Callable[[KIVConfig], StorePool]
    change_budgets: Callable[[StorePool, int], None] | None = None
    device: str = "cpu"

    def place(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Put the arguments of a call, floating and bool tensors, on the device."""
        return {
            name: value.to(self.device) if isinstance(value, torch.Tensor) and value.dtype != torch.int64 else value
            for name, value in arguments.items()
        }


def load(name: str, device: str = "cpu") -> Target:
    """Return the implementation called `name`: one of `KNOWN`, or "module:factory".

    A factory with an attribute `change_budgets` has this rule of the state machine switched on.
    """
    path = KNOWN.get(name, name)
    module, _, attribute = path.partition(":")
    if not attribute:
        raise ValueError(f"--impl must be one of {', '.join(KNOWN)} or module:factory; got {name!r}")
    factory = getattr(importlib.import_module(module), attribute)
    return Target(name, factory, getattr(factory, "change_budgets", None), device)
