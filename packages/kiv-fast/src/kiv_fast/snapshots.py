"""A store's state as a snapshot, and back (SPEC 9.7, 9.8)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import numpy as np
import torch
from kiv_reference.snapshot import Snapshot
from numpy.typing import NDArray

from .adoption import Adoption
from .cold import Cold
from .index.samples import Samples
from .state import State

Turn = Callable[[], AbstractContextManager[None]]
"""Lets a thread have the pool of a store to itself: forks of the store may be at work in others."""


class ArenaPages:
    """Pages of a store by number (`ColdPages`): a block is what a head has in a page.

    The store lives as long as these, by its method `turn`: the pages of one that nobody holds are gone.
    """

    lasting = False

    def __init__(self, cold: Cold, ids: NDArray[np.int32], turn: Turn) -> None:
        self._cold, self._ids, self._turn = cold, torch.from_numpy(ids.astype(np.int64)), turn
        self.block_tokens = cold.config.page_tokens

    def __len__(self) -> int:
        """Count the pages."""
        return len(self._ids)

    def read(self, values: bool, blocks: NDArray[np.int64], at: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Copy blocks, whatever tier they are in (`ColdPages.read`)."""
        heads = self._cold.shape.heads
        which = torch.from_numpy(blocks)
        with self._turn():
            rows = self._cold.arena.parts(values, self._ids[which // heads], which % heads)
        rows = rows.view(torch.uint8).numpy()
        for begin, row in zip(at.tolist(), rows, strict=True):
            out[begin : begin + len(row)] = row

    def index(self, start: int, stop: int) -> Mapping[str, torch.Tensor] | None:
        """Return the index of pages (`ColdPages.index`), None in exact mode."""
        index = self._cold.index
        if index is None:
            return None
        with self._turn():
            return index.of(self._ids[start:stop])._asdict()


def snapshot_of(state: State, turn: Turn) -> Snapshot:
    """Return the state as numbers; pages that several sequences have are there once."""
    tables = np.stack([row.pages for row in state.rows], axis=1)  # [N, B]
    ids, first, which = np.unique(tables, return_index=True, return_inverse=True)
    order = np.argsort(first)  # ids by the position at which they are used first
    number = np.empty(len(ids), np.int32)
    number[order] = np.arange(len(ids))
    key, value = state.recent.whole()
    valid = state.validity.part(0, state.length)
    return Snapshot(
        config=state.config,
        pages=np.moveaxis(number[which].reshape(tables.shape), 0, 1),
        cold=ArenaPages(state.cold, ids[order], turn),
        key=key,
        value=value,
        valid=None if valid is None or bool(valid.all()) else valid.clone(),
        sampled=state.samples.whole().to(key.device),
        finite=state.finite,
    )


def restore(state: State, snapshot: Snapshot) -> None:
    """Give an empty state that of a snapshot.

    Raises
    ------
    KIVBudgetError, KIVStorageError, KIVCorruptError
        It does not fit, or cannot be read. What was taken is to be given back (`State.release`).
    """
    config, length, valid = state.config, snapshot.length, snapshot.valid
    device = state.recent.bytes_with(snapshot.key.shape[2]) + state.validity.bytes_with(length, valid is not None)
    pages = snapshot.pages.shape[1]
    state.held.resize(device + state.ids_bytes(pages), 0 if config.exact else state.samples.bytes_at(length))
    state.recent.append(snapshot.key, snapshot.value)
    state.validity = state.validity.extended(valid, 0, length)
    if not config.exact:
        state.samples = Samples.restored(state.shape, snapshot.sampled.cpu())
    if pages:
        Adoption(state, snapshot).run()
    # What is cold by the partition and not yet in pages leaves the hot window too.
    state.reservation = state.cold.reserve(len(state.rows) * (config.cold_pages(length) - pages))
    state.length, state.pages, state.finite = length, pages, snapshot.finite
    state.cold.keep_rows(len(state.rows))
