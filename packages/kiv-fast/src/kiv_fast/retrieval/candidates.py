"""What a block sees of one sequence, and its candidates and selection (SPEC 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..cold import Cold
from ..ops.arguments import Found, Tile
from ..ops.page_index import PageIndex
from ..pages.block_table import BlockTable

FACTORS = (0, 1, 2, 4)
"""Multiples of `candidate_tokens` that are tried before a head streams (SPEC 6.3); 0 is a plain retrieval."""


@dataclass(frozen=True)
class View:
    """What a block sees of one sequence; or consecutive blocks of the same cold pages, of several (`Queries`).

    Attributes
    ----------
    row : BlockTable
    index : PageIndex
        Of the cold pages of the block's partition.
    tokens : int
        Valid tokens in them, of one sequence.
    always : list of Tile
        Sinks and hot tokens, up to the last query.
    finite : bool
        Whether every value of the store is a number.
    blocks : int
    """

    cold: Cold
    row: BlockTable
    index: PageIndex
    tokens: int
    always: list[Tile]
    finite: bool
    blocks: int = 1

    @property
    def most(self) -> int:
        """Tokens that a block may ask for at most, the best ones."""
        config = self.cold.config
        factor = 2 if config.max_missed_mass is None else FACTORS[-1]
        return min(factor * config.candidate_tokens, self.tokens)


def find(view: View, estimates: Any) -> Found:
    """Return candidates and selection (SPEC 4.4, 4.6, 4.9); heads that were widened stay among the late ones."""
    cold, config = view.cold, view.cold.config
    assert config.retrieve_tokens is not None, "exact mode selects nothing"
    candidates, keys = min(config.candidate_tokens, view.tokens), cold.rows(view.row, values=False, blocks=view.blocks)
    found = cold.ops.select(estimates, keys, candidates, config.retrieve_tokens)
    if found.late and view.tokens > candidates:
        found = cold.ops.widen(estimates, keys, found, min(2 * candidates, view.tokens))._replace(late=found.late)
    cold.counters.key_bytes_gathered += found.keys * cold.shape.key_width * cold.shape.dtype.itemsize
    return found
