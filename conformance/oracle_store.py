"""The second oracle's store: SPEC chapters 2, 7 and 9 over plain lists of tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .oracle import Head, Modifiers
from .oracle_block import Block, HeadBlock, Member
from .oracle_index import EVERY, Page

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kiv_reference import KIVConfig

    from .oracle_numbers import Vector

NO_SINK = -math.inf


@dataclass
class OracleStore:
    """Tokens of a store as nested lists: keys ``[B][H][T][D]``, values ``[B][H][T][DV]``, validity ``[B][T]``.

    `samples` ``[B][H]`` holds the queries of sampled positions ``[G][D]``. `attended`: the last append's queries came.
    """

    config: KIVConfig
    keys: list[list[list[Vector]]] = field(default_factory=list)
    values: list[list[list[Vector]]] = field(default_factory=list)
    valid: list[list[bool]] = field(default_factory=list)
    samples: list[list[dict[int, list[Vector]]]] = field(default_factory=list)
    pending: int = 0
    attended: bool = False
    dtype: type[np.floating[Any]] = np.float32
    _known: list[list[dict[int, Page | None]]] = field(default_factory=list)

    @property
    def length(self) -> int:
        """T."""
        return len(self.valid[0]) if self.valid else 0

    def append(
        self,
        keys: list[list[list[Vector]]],
        values: list[list[list[Vector]]],
        valid: list[list[bool]] | None,
        dtype: type[np.floating[Any]] = np.float32,
    ) -> None:
        """Append (SPEC 9.1); `dtype` is that of SPEC 1.2."""
        n = len(keys[0][0])
        if not self.valid:
            self.dtype = dtype
            self.samples = [[{} for _ in sequence] for sequence in keys]
            self._forget()
            self.keys = [[[] for _ in sequence] for sequence in keys]
            self.values = [[[] for _ in sequence] for sequence in values]
            self.valid = [[] for _ in keys]
        for b, sequence in enumerate(keys):
            for h, tokens in enumerate(sequence):
                self.keys[b][h].extend(tokens)
                self.values[b][h].extend(values[b][h])
            self.valid[b].extend([True] * n if valid is None else valid[b])
        self.pending, self.attended = n, False

    def attend(self, query: list[list[list[Vector]]]) -> None:
        """Keep the queries ``[B][HQ][TQ]`` of sampled positions, the first time after an append (SPEC 3.2)."""
        if self.attended:
            return
        self.attended = True
        first, groups = self.length - self.pending, len(query[0]) // len(self.keys[0])
        for at in range(first, self.length):
            for b, flags in enumerate(self.valid):
                if (at + 1) % EVERY == 0 and flags[at]:
                    for h, kept in enumerate(self.samples[b]):
                        kept[at] = [list(query[b][g][at - first]) for g in range(h * groups, (h + 1) * groups)]

    def crop(self, length: int) -> None:
        """Crop (SPEC 9.2)."""
        self.keys = [[tokens[:length] for tokens in sequence] for sequence in self.keys]
        self.values = [[tokens[:length] for tokens in sequence] for sequence in self.values]
        self.valid = [flags[:length] for flags in self.valid]
        self.samples = [[{p: q for p, q in kept.items() if p < length} for kept in row] for row in self.samples]
        self.pending = 0
        self._forget()

    def select(self, rows: Sequence[int]) -> None:
        """Choose sequences (SPEC 9.3)."""
        self.keys = [[list(tokens) for tokens in self.keys[row]] for row in rows]
        self.values = [[list(tokens) for tokens in self.values[row]] for row in rows]
        self.valid = [list(self.valid[row]) for row in rows]
        self.samples = [[dict(kept) for kept in self.samples[row]] for row in rows]
        self._forget()

    def fork(self) -> OracleStore:
        """Fork (SPEC 9.4)."""
        copy = replace(self)
        copy.select(range(len(self.valid)))
        return copy

    def reset(self) -> None:
        """Reset (SPEC 9.5)."""
        self.keys, self.values, self.valid, self.samples, self.pending = [], [], [], [], 0
        self._forget()

    def _forget(self) -> None:
        """Drop what was computed of cold pages."""
        self._known = [[{} for _ in row] for row in self.samples]

    def parts(self) -> tuple[int, int, int]:
        """Return sinks, hot and cold positions for the next call (SPEC 2.2)."""
        sinks = min(self.config.sink_tokens, self.length)
        cold = Head(self.config, [], [], [], self.length).cold_pages * self.config.page_tokens
        return sinks, self.length - sinks - cold, cold

    def blocks(self, remaining: int | None = None) -> list[Block]:
        """Return the query blocks of the call that is due, told that `remaining` tokens follow, or not (SPEC 7)."""
        c, stop = self.config, self.length
        first = stop - self.pending
        if c.retrieve_tokens is None:
            return [Block("exact", first, stop)]
        if self.pending == 1 and remaining is None:
            return [Block(self._mode("retrieve", first), first, stop)]
        if c.prefill == "exact":
            return [Block("exact", first, stop)]
        suffix = min(self.pending, max(0, c.exact_suffix_tokens - (remaining or 0)))
        blocks: list[Block] = []
        while first < stop - suffix:
            end = min(first + c.query_block_tokens, stop - suffix)
            blocks.append(Block(self._mode(c.prefill, first), first, end))
            first = end
        return [*blocks, Block("exact", first, stop)] if suffix else blocks

    def _mode(self, mode: str, first: int) -> str:
        """Return the mode of a block: where there is nothing to choose it attends exactly (SPEC 4.1)."""
        cold = Head(self.config, [], [], [], first).cold_pages * self.config.page_tokens
        return "exact" if mode == "retrieve" and cold <= self.config.candidate_tokens else mode

    def head_blocks(
        self,
        block: Block,
        query: list[list[list[Vector]]],
        modifiers: Modifiers,
        sinks: list[list[list[float]]] | None,
    ) -> list[list[HeadBlock]]:
        """Return ``[B][H]``, for the call's queries ``[B][HQ][TQ]`` and sink logits of the same shape."""
        first = self.length - self.pending
        groups = len(query[0]) // len(self.keys[0])
        result: list[list[HeadBlock]] = []
        for b, flags in enumerate(self.valid):
            row: list[HeadBlock] = []
            for h, keys in enumerate(self.keys[b]):
                held = keys, self.values[b][h], flags, block.start, self.samples[b][h], self.dtype, self._known[b][h]
                head = Head(self.config, *held)
                members: dict[bool, list[Member]] = {True: [], False: []}
                for g in range(h * groups, (h + 1) * groups):
                    for at in range(block.start, block.stop):
                        vector = query[b][g][at - first]
                        if not flags[at]:
                            vector = [x if math.isfinite(x) else 0.0 for x in vector]
                        sink = NO_SINK if sinks is None else sinks[b][g][at - first]
                        members[flags[at]].append((g, at, vector, sink))
                row.append(HeadBlock(b, h, block, head, modifiers, members[True], members[False]))
            result.append(row)
        return result
