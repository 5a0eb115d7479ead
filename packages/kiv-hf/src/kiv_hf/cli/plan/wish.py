"""What the user asks a plan for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from kiv_reference.config import KIVConfig


@dataclass(frozen=True)
class Wish:
    """A context, and the machine that is to hold it.

    Attributes
    ----------
    config : KIVConfig
        Without budgets: these are found.
    tokens : int
        Prompt and answer.
    device_memory, ram : int
        Bytes of the device, and of the machine's RAM.
    disk : int or None
        Bytes of disk for cold pages; None is no limit.
    dtype : torch.dtype
        Of keys, values and dense weights.
    bits : float or None
        Of a quantised weight; None where all are dense.
    chunk_tokens : int or None
        Tokens of the prompt that are read at once; None lets the plan choose.
    """

    config: KIVConfig
    tokens: int
    device_memory: int
    ram: int
    disk: int | None
    dtype: torch.dtype
    bits: float | None
    chunk_tokens: int | None = None
