"""How a call is cut into query blocks (SPEC 7)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from kiv_reference.config import KIVConfig
from kiv_reference.report import Mode


class Block(NamedTuple):
    """Queries at positions ``[start, stop)``, answered together over `pages` cold pages (SPEC 2.3)."""

    mode: Mode
    start: int
    stop: int
    pages: int


def blocks(config: KIVConfig, length: int, queries: int) -> Iterator[Block]:
    """The blocks of a call of `queries` tokens, the last of `length`, in order of position."""
    first = length - queries
    if config.exact or (queries > 1 and config.prefill == "exact"):
        yield Block("exact", first, length, config.cold_pages(first))
        return
    if queries == 1:
        yield Block("retrieve", first, length, config.cold_pages(first))
        return
    suffix = max(first, length - config.exact_suffix_tokens)
    for start in range(first, suffix, config.query_block_tokens):
        stop = min(start + config.query_block_tokens, suffix)
        yield Block(config.prefill, start, stop, config.cold_pages(start))
    if suffix < length:
        yield Block("exact", suffix, length, config.cold_pages(suffix))
