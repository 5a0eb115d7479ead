"""Which position is a sink, cold or hot, and how a call is cut into query blocks (SPEC 2.2, 2.3, 7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .config import KIVConfig
    from .report import Mode


@dataclass(frozen=True)
class Partition:
    """Sinks ``[0, cold_start)``, cold pages ``[cold_start, hot_start)``, hot from ``hot_start`` on (SPEC 2.2)."""

    cold_start: int
    pages: int
    page_tokens: int

    @property
    def hot_start(self) -> int:
        """First hot position."""
        return self.cold_start + self.pages * self.page_tokens

    def page(self, j: int) -> tuple[int, int]:
        """Return the first position of cold page `j`, and the one after its last."""
        start = self.cold_start + j * self.page_tokens
        return start, start + self.page_tokens


def partition(config: KIVConfig, boundary: int) -> Partition:
    """Return the partition for a boundary in tokens (SPEC 2.2).

    Before the sinks are full there is no cold page, so `hot_start` may lie beyond the last token.
    """
    return Partition(config.sink_tokens, config.cold_pages(boundary), config.page_tokens)


@dataclass(frozen=True)
class QueryBlock:
    """Queries at positions ``[start, stop)`` that are answered together, and how."""

    mode: Mode
    start: int
    stop: int


def query_blocks(config: KIVConfig, length: int, queries: int, remaining: int | None) -> Iterator[QueryBlock]:
    """Cut the last `queries` of `length` positions, which `remaining` of their prompt follow, into blocks (SPEC 7)."""
    first = length - queries
    if config.exact:
        yield QueryBlock("exact", first, length)
        return
    if queries == 1 and remaining is None:
        yield QueryBlock(_chosen(config, "retrieve", first), first, length)
        return
    if config.prefill == "exact":
        yield QueryBlock("exact", first, length)
        return
    suffix = min(length, max(first, length + (remaining or 0) - config.exact_suffix_tokens))
    for start in range(first, suffix, config.query_block_tokens):
        mode = _chosen(config, config.prefill, start)
        yield QueryBlock(mode, start, min(start + config.query_block_tokens, suffix))
    if suffix < length:
        yield QueryBlock("exact", suffix, length)


def _chosen(config: KIVConfig, mode: Mode, boundary: int) -> Mode:
    """Return `mode`, or "exact" where there is nothing to choose (SPEC 4.1)."""
    cold = config.cold_pages(boundary) * config.page_tokens
    return "exact" if mode == "retrieve" and cold <= config.candidate_tokens else mode
