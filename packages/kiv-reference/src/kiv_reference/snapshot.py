"""The state of a store as numbers that another store, process or implementation can take (SPEC 9.7, 9.8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from .checks import StoreShape

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from .config import KIVConfig

UNSEEN = -1.0
"""Stands for a query that was not sampled: no magnitude is below 0."""


class ColdPages(Protocol):
    """Keys and values of cold pages ``[H, P, W]``, numbered from 0: in memory, or in files.

    A page is read in blocks: so many consecutive tokens of one KV head. With n blocks to a head, the number b that
    `read` takes is block b % n of head b // n % H of page b // (n H).
    """

    @property
    def block_tokens(self) -> int:
        """Tokens of a block, a divisor of P."""
        ...

    @property
    def lasting(self) -> bool:
        """Whether they can be read after `restore` has returned, as long as this object lives."""
        ...

    def __len__(self) -> int:
        """Count the pages."""
        ...

    def read(self, values: bool, blocks: NDArray[np.int64], at: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Write keys, or values, of blocks ``[K]`` to `out`, each from the byte ``at[i]`` on.

        Raises
        ------
        KIVCorruptError
            They are not what was saved.
        KIVStorageError
            The system refuses to read them.
        """
        ...

    def index(self, start: int, stop: int) -> Mapping[str, torch.Tensor] | None:
        """Return the index of pages ``[start, stop)`` by the names of docs/format.md, in RAM; None if there is none."""
        ...


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The state of a store that has its shape, whatever it holds.

    It may share memory with the store: it is good until the store changes. What lies at invalid positions is zero.

    Attributes
    ----------
    config : KIVConfig
        Of the store.
    pages : int32 [B, N]
        Numbers of the pages of each sequence, in order of position; sequences may share pages. They count by position,
        and by sequence among pages of one, so that more tokens, or fewer, leave the others their numbers.
    cold : ColdPages
        What these are.
    key, value : [B, H, T - N P, D] and [B, H, T - N P, DV], on the device of the store
        Sinks, and what follows the cold pages.
    valid : bool [B, T], or None if all are
    sampled : [B, H, n, D], n <= T / 64, in the dtype of the keys
        Of the position before each multiple of 64: the largest \\|q\\| over the query heads; `UNSEEN` where it was not
        sampled (SPEC 3.2).
    finite : bool
        Whether every value is a number.
    """

    config: KIVConfig
    pages: NDArray[np.int32]
    cold: ColdPages
    key: torch.Tensor
    value: torch.Tensor
    valid: torch.Tensor | None
    sampled: torch.Tensor
    finite: bool

    @property
    def length(self) -> int:
        """T."""
        return self.pages.shape[1] * self.config.page_tokens + self.key.shape[2]

    @property
    def shape(self) -> StoreShape:
        """What every further token must be like."""
        batch, heads, _, width = self.key.shape
        return StoreShape(batch, heads, width, self.value.shape[3], self.key.dtype, self.key.device)

    def beside_pages(self, valid: torch.Tensor | None) -> torch.Tensor | None:
        """Return the validity of the tokens in `key` alone, of flags bool ``[B, T]``; None if all are."""
        if valid is None or not self.pages.size:
            return valid
        sinks, cold = self.config.sink_tokens, self.pages.shape[1] * self.config.page_tokens
        return torch.cat([valid[:, :sinks], valid[:, sinks + cold :]], dim=1)

    def read_pages(self, values: bool, start: int, stop: int) -> torch.Tensor:
        """Read whole pages ``[start, stop)``, as a tensor ``[n, H, P, W]`` in RAM. Raises as `ColdPages.read`."""
        shape, size, cold = self.shape, self.config.page_tokens, self.cold
        width = shape.value_width if values else shape.key_width
        tensor = torch.empty(stop - start, shape.heads, size, width, dtype=shape.dtype, device="cpu")
        of_page, block_bytes = shape.heads * size // cold.block_tokens, cold.block_tokens * width * shape.dtype.itemsize
        blocks = np.arange(start * of_page, stop * of_page)
        if len(blocks):
            out = tensor.view(-1).view(torch.uint8).numpy()
            cold.read(values, blocks, np.arange(len(blocks)) * block_bytes, out)
        return tensor


class TensorPages:
    """Pages that lie in tensors ``[n, H, P, D]`` and ``[n, H, P, DV]``, on any device; a block is a head's page."""

    lasting = False

    def __init__(self, key: torch.Tensor, value: torch.Tensor) -> None:
        self._parts = key, value
        self.block_tokens = key.shape[2]

    def __len__(self) -> int:
        """Count the pages."""
        return self._parts[0].shape[0]

    def read(self, values: bool, blocks: NDArray[np.int64], at: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Copy blocks (`ColdPages.read`)."""
        part = self._parts[values]
        for block, begin in zip(blocks.tolist(), at.tolist(), strict=True):
            page, head = divmod(block, part.shape[1])
            copied = part[page, head].cpu().contiguous().view(-1).view(torch.uint8).numpy()
            out[begin : begin + copied.nbytes] = copied

    def index(self, start: int, stop: int) -> Mapping[str, torch.Tensor] | None:
        """Return None: it is made of the pages."""
        return None
