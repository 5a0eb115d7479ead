"""kiv-fast as on a device that computes on its own, and with small chapters: ``--impl fast-late-answers``.

A decode step then goes on without knowing whether its numbers are finite and its first look at the pages enough.
"""

from __future__ import annotations

from kiv_fast.pool import FastPool
from kiv_fast.transfer import NullTransfer
from kiv_reference import KIVConfig

from . import small_chapters


def pool(config: KIVConfig) -> FastPool:
    """A pool that finds out afterwards."""
    NullTransfer.immediate = False
    return small_chapters.pool(config)
