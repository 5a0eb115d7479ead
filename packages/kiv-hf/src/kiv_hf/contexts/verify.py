"""Looks at every byte of a saved context."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from kiv_fast.tiers.durable_io import DurableIO
from kiv_reference.errors import KIVCorruptError, KIVError, KIVStorageError

from .checksums import block_sums, seed_of
from .faults import corrupt
from .folder import Folder
from .layout import SIDES
from .opened import Opened
from .read import saved_in
from .segment_writer import BATCH_BYTES

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from .segment_file import SegmentFile


class Fault(NamedTuple):
    """Something that is not what was written.

    Attributes
    ----------
    path : str
        Of the file.
    tensor : str
        In it; "" is what the tensors make together.
    error : KIVError
        What a reader says of it.
    """

    path: str
    tensor: str
    error: KIVError


def verify(
    folder: str | os.PathLike[str], io: DurableIO | None = None, progress: Callable[[int, int], None] | None = None
) -> list[Fault]:
    """Compare every byte of the context in a folder with its checksum.

    Parameters
    ----------
    folder : path
    io : DurableIO, optional
        The system.
    progress : callable, optional
        Called with bytes looked at so far and in all.

    Returns
    -------
    list of Fault
        Empty, if all is as it was written.

    Raises
    ------
    KIVUsageError, KIVCorruptError, KIVMismatchError, KIVStorageError
        There is none, or the manifest or a header is not what it must be: nothing else can be told then.
    """
    opened = Opened(Folder(folder, DurableIO() if io is None else io))
    total = sum(part.nbytes for file in opened.files for part in file.parts.values())
    done = 0
    faults: list[Fault] = []
    for file in opened.files:
        for name, part in file.parts.items():
            try:
                if name in file.entry.sums:
                    file.tensor(name)
                else:
                    _check_blocks(opened, file, name)
            except (KIVCorruptError, KIVStorageError) as error:
                faults.append(Fault(file.path, name, error))
            done += part.nbytes
            if progress is not None:
                progress(done, total)
    if not faults:
        try:
            saved_in(opened, lambda _: torch.device("cpu"))
        except (KIVCorruptError, KIVStorageError) as error:
            faults.append(Fault(opened.rest.path, "", error))
    opened.close()
    return faults


def _check_blocks(opened: Opened, file: SegmentFile, name: str) -> None:
    """Compare the checksums of all pages of a layer that a segment has, also of those that nobody reads any more."""
    layer, _, side = name.partition(".")
    geometry, part = opened.manifest.geometries[int(layer)], file.parts[name]
    expected = file.tensor(f"{name}.sums").view(-1).numpy().view(np.uint64)
    size = geometry.block_bytes(SIDES.index(side))
    seed, step = seed_of(file.entry.name, name), max(1, BATCH_BYTES // size)
    for first in range(0, len(expected), step):
        blocks = np.arange(first, min(first + step, len(expected)))
        data = file.read(part.begin + first * size, len(blocks) * size)
        wrong = np.flatnonzero(block_sums(data, (blocks - first) * size, size, seed, blocks) != expected[blocks])
        if wrong.size:
            raise corrupt(file.path, f"hold {name} as it was written", f"other bytes in block {first + wrong[0]}")
