"""How a call is cut into query blocks (SPEC 7)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from kiv_reference.config import KIVConfig
from kiv_reference.report import Mode


class Block(NamedTuple):
    """Queries at positions ``[start, stop)``, answered together over `pages` cold pages (SPEC 2.3)."""

    mode: Mode
    start: int
    stop: int
    pages: int


def blocks(config: KIVConfig, length: int, queries: int, remaining: int | None) -> list[Block]:
    """Cut a call of `queries` tokens, the last of `length`, into blocks in order of position.

    `remaining` tokens of its prompt follow (SPEC 7.6); None where the call was told nothing.
    """
    first = length - queries
    if queries == 1 and remaining is None and not config.exact:
        return [_block(config, "retrieve", first, length)]
    exact = length if config.prefill == "exact" else config.exact_suffix_tokens - (remaining or 0)
    suffix = min(length, max(first, length - exact))
    step = config.query_block_tokens
    cut = [_block(config, config.prefill, start, min(start + step, suffix)) for start in range(first, suffix, step)]
    return [*cut, _block(config, "exact", suffix, length)] if suffix < length else cut


def alike(cut: Sequence[Block]) -> list[list[Block]]:
    """Put consecutive blocks of the same mode, number of queries and cold pages together, and all that are exact."""

    def kind(block: Block) -> tuple[object, ...]:
        return (block.mode,) if block.mode == "exact" else (block.mode, block.stop - block.start, block.pages)

    return [list(run) for _, run in groupby(cut, kind)]


def _block(config: KIVConfig, mode: Mode, start: int, stop: int) -> Block:
    """Return a block, exact where there is nothing to choose (SPEC 4.1)."""
    pages = config.cold_pages(start)
    few = mode == "retrieve" and pages * config.page_tokens <= config.candidate_tokens
    return Block("exact" if few else mode, start, stop, pages)
