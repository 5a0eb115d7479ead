"""kiv-fast with chapters so small that every population reaches their scan: ``--impl fast-small-chapters``.

The ones it ships with begin at hundreds of pages, where an oracle in Python numbers would take hours.
"""

from __future__ import annotations

from kiv_fast import FastPool, chapters
from kiv_reference import KIVConfig


def pool(config: KIVConfig) -> FastPool:
    """A pool whose stores pack their pages into chapters of 2, 4 and 8."""
    sizes = {"LEAST_CHAPTER_PAGES": 2, "MOST_CHAPTER_PAGES": 8, "STAGGER_PAGES": 2}
    for name, pages in sizes.items():
        setattr(chapters, name, pages)
    return FastPool(config)
