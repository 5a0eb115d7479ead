"""Saves a cache to a folder: what was there stays, until all that is new is on the disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kiv_fast.tiers.durable_io import DurableIO

from .commit import Commit
from .folder import Folder
from .previous import kept_segments
from .saved_checks import check_saved

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from .saved import SavedCache

SEGMENT_BYTES = 1 << 28
"""Of pages in a segment, if one page of all layers is not longer."""


def write(
    folder: str | os.PathLike[str],
    saved: SavedCache,
    *,
    previous_pages: int = 0,
    io: DurableIO | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Save a cache; the context that was in the folder is there as before if an error is raised (docs/format.md).

    Parameters
    ----------
    folder : path
        Made, if it is not there; its parent must be. It is the cache's alone.
    saved : SavedCache
    previous_pages : int, optional
        The first so many pages of every layer are those of the context that is in the folder. They are not written
        again; the last one of each layer is compared.
    io : DurableIO, optional
        The system.
    progress : callable, optional
        Called with bytes written so far and in all, of keys, values and what is kept beside pages.

    Raises
    ------
    KIVUsageError
        The cache or the folder is not what it must be, or somebody else is writing.
    KIVBudgetError
        There is no room on the disk.
    KIVStorageError
        The system refuses. Only if it does so after the new manifest is in place, that is what is there from now on.
    """
    place = Folder(folder, DurableIO() if io is None else io)
    check_saved(saved)
    commit = Commit(place, saved, progress)
    place.prepare()
    with place.locked():
        kept = kept_segments(place, saved, previous_pages, SEGMENT_BYTES) if previous_pages else []
        commit.run(kept, SEGMENT_BYTES)
