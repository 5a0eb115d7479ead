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
    if queries == 1 and not config.exact:
        yield _block(config, "retrieve", first, length)
        return
    suffix = first if config.prefill == "exact" else max(first, length - config.exact_suffix_tokens)
    for start in range(first, suffix, config.query_block_tokens):
        yield _block(config, config.prefill, start, min(start + config.query_block_tokens, suffix))
    if suffix < length:
        yield _block(config, "exact", suffix, length)


def _block(config: KIVConfig, mode: Mode, start: int, stop: int) -> Block:
    """A block, exact where there is nothing to choose (SPEC 4.1)."""
    pages = config.cold_pages(start)
    few = mode == "retrieve" and pages * config.page_tokens <= config.candidate_tokens
    return Block("exact" if few else mode, start, stop, pages)
