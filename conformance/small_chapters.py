"""kiv-fast with chapters so small that every population reaches their scan: ``--impl fast-small-chapters``.

The ones it ships with begin at hundreds of pages, where an oracle in Python numbers would take hours. Tiles, chunks and
the first look are small as well, so that each of them is often the last of several, and partial.
"""

from __future__ import annotations

from kiv_fast import FastPool, Tuning
from kiv_reference import KIVConfig

SMALL = Tuning(
    tile_tokens=8,
    query_chunk=3,
    summary_chunk=2,
    chunk_bytes=512,
    look_pages=1,
    least_chapter_pages=2,
    most_chapter_pages=8,
    stagger_pages=2,
    convert_pages=1,
    first_segment_bytes=4096,
    most_segment_bytes=16384,
)
"""Chapters of 2, 4 and 8 pages. What a long call took is kept as by default: budgets are set by what a pool held."""


def pool(config: KIVConfig) -> FastPool:
    """A pool that does everything in small parts."""
    return FastPool(config, tuning=SMALL)
