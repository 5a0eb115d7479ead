"""Segments that a context keeps when more, or less, of the same text is saved to its folder."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from kiv_reference.errors import KIVUsageError, refuse
from kiv_reference.snapshot_checks import SHAPING

from .layout import Geometry
from .opened import Opened
from .pages import SavedPages

if TYPE_CHECKING:
    from .folder import Folder
    from .manifest import Segment
    from .saved import SavedCache

MOST_SMALL = 128
"""Segments that may be kept whatever they hold: each is an open file of its readers."""

REMEDY = "Save all of it: previous_pages=0."


def kept_segments(folder: Folder, saved: SavedCache, pages: int, segment_bytes: int) -> list[Segment]:
    """Return the segments of the context in a folder that hold the first pages of a cache, as far as they do.

    None, if they are many, and less than half as long as a new one would be.

    Raises
    ------
    KIVUsageError
        They are not those of this cache.
    """
    opened = Opened(folder)
    try:
        before = opened.manifest
        now = {n: Geometry.of(layer.snapshot) for n, layer in enumerate(saved.layers) if layer.snapshot is not None}
        there = max((each.pages for each in now.values()), default=0)
        if not 0 < pages <= there:
            raise refuse(KIVUsageError, f"previous_pages must be 0 to {there}, those of the cache", pages, REMEDY)
        differ = [name for name in SHAPING if getattr(before.config, name) != getattr(saved.config, name)]
        if differ or before.geometries.keys() != now.keys():
            got = f"another {differ[0]}" if differ else "other layers"
            raise refuse(KIVUsageError, "previous_pages must be those of a cache like this one", got, REMEDY)
        for number, geometry in now.items():
            old, common = before.geometries[number], geometry.within(0, pages)
            if not old.like(geometry) or old.pages < common:
                rule = f"{folder.path} must hold the first {common} pages of layer {number}"
                raise refuse(KIVUsageError, rule, f"{old.pages} of {old.dtype}", REMEDY)
            if common:
                _check_same(opened, saved, number, common - 1)
        parts = [segment for segment in before.segments if segment.pages and segment.pages[0] < pages]
        if len(parts) > MOST_SMALL and sum(part.nbytes for part in parts) < len(parts) * segment_bytes // 2:
            return []
        return [part._replace(pages=(part.pages[0], min(part.pages[1], pages))) for part in parts if part.pages]
    finally:
        opened.close()


def _check_same(opened: Opened, saved: SavedCache, number: int, page: int) -> None:
    """Refuse a layer one of whose pages is another one in the folder: its folder has another text since."""
    snapshot = saved.layers[number].snapshot
    assert snapshot is not None, "it has a geometry"
    there = SavedPages(opened, number)
    for values in (False, True):
        ours, theirs = (whole.read_pages(values, page, page + 1) for whole in (snapshot, replace(snapshot, cold=there)))
        if not torch.equal(ours.view(-1).view(torch.uint8), theirs.view(-1).view(torch.uint8)):
            rule = "the pages that previous_pages counts must be those in the folder"
            raise refuse(KIVUsageError, rule, f"another page {page} of layer {number}", REMEDY)
