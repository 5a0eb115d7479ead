"""Keys and values of cold pages, by page id: what RAM alone and RAM with a disk have in common.

What an arena returns does not depend on the place (SPEC 10.1). What a step picks, `keys` and `values`, goes from the
device to the device: by places, int64 ``[n, K]``, which are rows of all pages by their ids, head by head in each.
`tile` stays in RAM.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from kiv_reference.report import TierBytes
from kiv_reference.snapshot import ColdPages
from numpy.typing import NDArray

from ..memory.growable_table import Table
from ..memory.ledger import Reservation
from ..memory.pinning import SlabPinning
from ..shape import Shape
from .resources import Resources


class Arena(ABC):
    """Where the keys and values of pages live, in tables that may be pinned or ask for large memory pages."""

    def __init__(self, shape: Shape, resources: Resources, pinning: SlabPinning | None, huge: bool) -> None:
        self._shape, self._page_tokens = shape, resources.config.page_tokens
        self._account = resources.account
        host, page = torch.device("cpu"), (shape.heads, self._page_tokens)
        self._key = Table((*page, shape.key_width), shape.dtype, host, pinning, huge)
        self._value = Table((*page, shape.value_width), shape.dtype, host, pinning, huge)
        self.page_bytes = shape.token_bytes * self._page_tokens
        self.absent = False  # whether something of the tables is still to be read (`bring`)

    def reserve(self, pages: int) -> Reservation:
        """Take a place for each of n pages to come.

        Raises
        ------
        KIVBudgetError
        """
        self._account.take(ram=pages * self.page_bytes)
        return Reservation(in_ram=pages)

    def release(self, reservation: Reservation) -> None:
        """Give back the places that were not used."""
        self._account.give(ram=reservation.in_ram * self.page_bytes)
        reservation.in_ram = reservation.on_disk = reservation.saved = 0

    def bytes_of(self, pages: NDArray[np.int32], reservation: Reservation) -> TierBytes:
        """Count the bytes of pages, of places for others, and of rows that were read from disk."""
        disk = self.pages_on_disk(pages)
        in_ram, on_disk = len(pages) - disk + reservation.in_ram, disk + reservation.on_disk
        return TierBytes(0, in_ram * self.page_bytes + self._account.rows, on_disk * self.page_bytes)

    def keys(self, places: torch.Tensor) -> torch.Tensor:
        """Gather keys ``[n, K, D]``."""
        return self._rows("keys", self._key, places)

    def values(self, places: torch.Tensor) -> torch.Tensor:
        """Gather values ``[n, K, DV]``."""
        return self._rows("values", self._value, places)

    @abstractmethod
    def _rows(self, name: str, table: Table, places: torch.Tensor) -> torch.Tensor: ...

    def table(self, values: bool) -> torch.Tensor | None:
        """View all keys or values, ``[pages, H, P, D]``, where the arithmetic can read them; None where it cannot."""
        return None

    def pieces(self, ids: list[int]) -> tuple[list[torch.Tensor], list[torch.Tensor]] | None:
        """View keys and values of whole pages, in flat pieces that a device copies by itself; None where it cannot."""
        return None

    def bring(self, values: bool, places: torch.Tensor) -> None:
        """Read what is absent of rows that a table is to be read at, by places in RAM; negative ones are none."""
        return

    def bring_pages(self, pages: NDArray[np.integer], heads: slice) -> None:
        """Do the same for what some heads have in whole pages."""
        return

    @property
    def reads_saved(self) -> bool:
        """Whether pages that last elsewhere can be read there, when they are needed (`adopt`)."""
        return True

    def reserve_saved(self, pages: int) -> Reservation:
        """Take what n such pages take here."""
        return self.reserve(pages)

    @abstractmethod
    def adopt(self, ids: list[int], source: ColdPages, reservation: Reservation) -> None:
        """Take all pages of a source that lasts, numbered by their ids, without reading them."""

    @abstractmethod
    def parts(self, values: bool, pages: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
        """Return what heads int64 ``[K]`` have in pages int64 ``[K]``, keys or values ``[K, P * W]`` in RAM."""

    @abstractmethod
    def tile(self, ids: list[int], heads: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what some of the heads have in whole pages, keys and values ``[heads, n * P, D]``, in order."""

    @abstractmethod
    def write(self, ids: list[int], key: torch.Tensor, value: torch.Tensor, reservation: Reservation) -> None:
        """Copy in pages ``[n, H, P, D]`` and ``[n, H, P, DV]``, for which there is room."""

    @abstractmethod
    def free(self, ids: list[int], reservation: Reservation | None = None) -> None:
        """Forget pages: their places are given back, or go to a reservation."""

    def pages_on_disk(self, ids: NDArray[np.int32]) -> int:
        """Count the pages that are on disk."""
        return 0

    def make_room(self, nbytes: int) -> None:
        """Evict pages to disk until this many bytes of RAM are free, as far as it goes."""
        return

    def drop_rows(self) -> None:
        """Free RAM that only makes steps faster."""
        return
