"""kiv-fast in parts so small that every population has several of them: ``--impl fast-small-parts``.

The ones it ships with hold thousands of tokens, where an oracle in Python numbers would take hours. So each tile and
each chunk is often the last of several, and partial. Query blocks and sequences are answered together, as on a device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kiv_fast import FastPool, Tuning

if TYPE_CHECKING:
    from kiv_reference import KIVConfig

SMALL = Tuning(
    tile_tokens=8,
    query_chunk=3,
    index_tokens=4,
    chunk_bytes=2048,
    kept_bytes=512,
    together_bytes=1 << 15,
    row_steps=1,
    row_share=2,
)
"""What a long call took is kept as by default: budgets are set by what a pool held."""


def pool(config: KIVConfig) -> FastPool:
    """Return a pool that does everything in small parts."""
    return FastPool(config, tuning=SMALL, ops="torch")
