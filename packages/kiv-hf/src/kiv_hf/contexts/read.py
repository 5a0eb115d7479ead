"""Reads a saved context: everything but pages at once, and pages when they are needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from kiv_fast.tiers.durable_io import DurableIO
from kiv_reference.errors import KIVError
from kiv_reference.snapshot import Snapshot
from kiv_reference.snapshot_checks import check_snapshot

from .faults import Malformed, corrupt, system_calls, well_formed
from .folder import Folder
from .layout import REST, Geometry
from .opened import Opened
from .pages import SavedPages
from .saved import SavedCache, SavedLayer
from .states import decode

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from .segment_file import SegmentFile


def read(
    folder: str | os.PathLike[str], device_of: Callable[[int], torch.device], io: DurableIO | None = None
) -> SavedCache:
    """Read the context in a folder; what is written there later does not change it.

    Parameters
    ----------
    folder : path
    device_of : callable
        Returns the device of a layer, by its number. Tensors of the cache's own state are in RAM.
    io : DurableIO, optional
        The system.

    Returns
    -------
    SavedCache
        Whose snapshots read pages from the files as they are needed, which stay open as long as one of them lives.

    Raises
    ------
    KIVUsageError
        There is no context, or it is another user's.
    KIVCorruptError
        It is not what was written, as far as it was looked at: everything but pages and their index.
    KIVMismatchError
        It is of a newer format, or by another version of SPEC.md.
    KIVStorageError, KIVBudgetError
    """
    opened = Opened(Folder(folder, DurableIO() if io is None else io))
    saved = saved_in(opened, device_of)
    with system_calls(opened.rest.path, "read"):
        opened.expect_random()
    return saved


def saved_in(opened: Opened, device_of: Callable[[int], torch.device]) -> SavedCache:
    """Return what an open context holds."""
    manifest, rest = opened.manifest, _Rest(opened.rest)
    with well_formed(opened.rest.path):
        state = decode(manifest.state, rest.tensor)
        layers: list[SavedLayer] = []
        for number, layer in enumerate(manifest.layers):
            rest.device, rest.prefix = device_of(number), f"{number}."
            snapshot = None if layer.geometry is None else _snapshot(opened, rest, number, layer.geometry)
            layers.append(SavedLayer(layer.kind, snapshot, decode(layer.state, rest.tensor)))
        rest.end()
    return SavedCache(manifest.config, layers, manifest.tokens, dict(manifest.provenance), state)


class _Rest:
    """Tensors of the rest segment, each of which is asked for once, by those it belongs to."""

    def __init__(self, file: SegmentFile) -> None:
        self._file, self._left = file, set(file.parts)
        self.device, self.prefix = torch.device("cpu"), ""

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor of a state."""
        if not name.startswith(f"{self.prefix}state."):
            raise Malformed("have tensors of its own in a state", name)
        return self.take(name).to(self.device)

    def has(self, name: str) -> bool:
        """Tell whether it is there to be taken."""
        return name in self._left

    def take(self, name: str) -> torch.Tensor:
        """Return a tensor, in RAM."""
        if name not in self._left:
            raise Malformed("have each tensor that is named, once", name)
        self._left.remove(name)
        return self._file.tensor(name)

    def end(self) -> None:
        """Refuse tensors that nobody asked for."""
        if self._left:
            raise Malformed("have no other tensors", sorted(self._left)[:8])


def _snapshot(opened: Opened, rest: _Rest, number: int, geometry: Geometry) -> Snapshot:
    parts = {name: rest.take(f"{number}.{name}") for name in REST if rest.has(f"{number}.{name}")}
    if not parts.keys() >= set(REST) - {"valid"}:
        raise Malformed(f"have what is beside the pages of layer {number}", sorted(parts))
    pages = parts.pop("pages")
    if pages.dtype != torch.int32 or pages.ndim != 2:
        raise Malformed(f"have numbers of pages of layer {number}, int32 [B, N]", f"{pages.dtype} {list(pages.shape)}")
    key, value, sampled = (parts[name].to(rest.device) for name in REST[1:4])
    valid = parts["valid"].to(rest.device) if "valid" in parts else None
    table = np.ascontiguousarray(pages.numpy())
    snapshot = Snapshot(
        config=opened.manifest.config,
        pages=table,
        cold=SavedPages(opened, number, table),
        key=key,
        value=value,
        valid=valid,
        sampled=sampled,
        finite=geometry.finite,
    )
    try:
        check_snapshot(snapshot, snapshot.config, empty=True)
    except KIVError as error:
        raise corrupt(opened.rest.path, f"have a snapshot as layer {number}", error) from error
    if Geometry.of(snapshot) != geometry:
        raise Malformed(f"have as layer {number} what the manifest says: {geometry}", Geometry.of(snapshot))
    return snapshot
