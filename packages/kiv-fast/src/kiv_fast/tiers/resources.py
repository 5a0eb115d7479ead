"""What a store has from its pool."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kiv_reference.config import KIVConfig

from ..device.ahead import Ahead
from ..device.gather import Gather
from ..memory.ledger import Account, Counters
from ..memory.pinning import SlabPinning
from ..memory.scratch import Scratch
from ..ops import OpsChoice
from ..tuning import Tuning
from .file_io import FileIO


@dataclass(frozen=True)
class Resources:
    """What the stores of a pool on one device share, and the account of one of them and its forks.

    Attributes
    ----------
    folder : str
        Where files of pages go; empty without a RAM budget.
    io : FileIO
        The system calls of the disk tier.
    gather : Gather
        How the device reads host memory.
    aside : Scratch
        Buffers of steps for rows that the device is to keep.
    stores : callable
        Counts the stores of the pool.
    ahead : Ahead, or None on a CPU
        What sends tiles of cold pages to the device.
    """

    config: KIVConfig
    tuning: Tuning
    counters: Counters
    account: Account
    scratch: Scratch
    ops: OpsChoice
    folder: str
    io: FileIO
    pinning: SlabPinning | None
    gather: Gather
    aside: Scratch
    stores: Callable[[], int]
    ahead: Ahead | None
