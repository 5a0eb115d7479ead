"""kiv-fast as on a device that computes on its own, and in small parts: ``--impl fast-late-answers``.

A decode step then goes on without knowing whether its numbers are finite and its first look at the pages enough.
"""

from __future__ import annotations

from kiv_fast.cold import Cold
from kiv_fast.pool import FastPool
from kiv_fast.validate import Shape
from kiv_reference import KIVConfig

from .small_chapters import SMALL


class LatePool(FastPool):
    """A pool that finds out afterwards."""

    def cold(self, shape: Shape, ordinal: int) -> Cold:
        """The cold pages of a store whose device does not answer at once."""
        cold = super().cold(shape, ordinal)
        cold.transfer.immediate = False
        return cold


def pool(config: KIVConfig) -> FastPool:
    """A pool that finds out afterwards."""
    return LatePool(config, tuning=SMALL)
