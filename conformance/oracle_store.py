"""The second oracle's store: SPEC chapters 2, 7 and 9 over plain lists of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from kiv_reference import KIVConfig

from .oracle import Head, Modifiers, Term, Vector, log_sum_exp, share
from .oracle_mass import missed_mass, true_missed, whole_pages
from .oracle_shift import Shift

NO_SINK = -math.inf


Member = tuple[int, int, Vector, float]
"""Query head, position, query and sink logit."""


@dataclass(frozen=True)
class Block:
    """A query block: mode and positions ``[start, stop)`` (SPEC 7)."""

    mode: str
    start: int
    stop: int


@dataclass(frozen=True)
class Retrieved:
    """What one sequence and KV head of a block retrieved."""

    candidates: list[int]
    selected: list[int]
    streamed: bool


@dataclass
class HeadBlock:
    """One sequence and KV head of one block: everything that it is computed from."""

    sequence: int
    kv_head: int
    block: Block
    head: Head
    modifiers: Modifiers
    members: list[Member]  # valid queries only
    others: list[Member] = field(default_factory=list)  # the invalid ones

    @property
    def apart(self) -> HeadBlock:
        """The invalid queries, as a block of their own (SPEC 2.4)."""
        return replace(self, members=self.others, others=[])

    @property
    def vectors(self) -> list[Vector]:
        """The members' queries."""
        return [q for _, _, q, _ in self.members]

    def retrieve(self) -> Retrieved:
        """SPEC 4 and 6.3."""
        if self.block.mode != "retrieve" or not self.members:
            return Retrieved([], [], self.block.mode == "exact")
        config, scale = self.head.config, self.modifiers.scale
        ranked = self.head.rank(self.vectors, scale)
        candidates = ranked[: config.candidate_pages]
        selected = self.head.select(self.vectors, candidates, scale)
        if config.max_missed_mass is None:
            return Retrieved(candidates, selected, False)
        queries = [(q, at, sink) for _, at, q, sink in self.members]
        k = whole_pages(self.head, queries, ranked, selected, self.modifiers)
        if k is None:
            return Retrieved([], [], True)
        whole = {i for j in ranked[:k] for i in self.head.pages[j].positions}
        return Retrieved(ranked[: max(k, config.candidate_pages)], sorted(whole | set(selected)), False)

    def shift(self, given: Retrieved) -> Shift:
        """The shift of mean values, by the selection (SPEC 5.5)."""
        return Shift(self.head, self.vectors, given.selected, self.modifiers)

    def terms(self, query: Vector, at: int, given: Retrieved, shift: Shift) -> list[Term]:
        """Summands of one query's softmax."""
        if given.streamed:
            tokens = [i for i in range(at + 1) if self.head.valid[i]]
            keys, values = self.head.keys, self.head.values
            return [Term(self.modifiers.logit(query, keys[i]), values[i], (i,), "token") for i in tokens]
        tail = self.block.mode == "retrieve" and self.head.config.tail == "mean"
        terms = self.head.terms(query, at, given.candidates, given.selected, tail, self.modifiers)
        return shift.applied(query, terms)

    def bounds(self, query: Vector, at: int, sink: float, given: Retrieved) -> tuple[float, float, float]:
        """Missed share that is true, missed bound, missed bound enlarged as far as it may be (SPEC 6.2)."""
        if given.streamed:
            return 0.0, 0.0, 0.0
        arguments = (self.head, query, at, sink, given.candidates, given.selected, self.modifiers)
        return (
            true_missed(self.head, query, at, sink, given.selected, self.modifiers),
            missed_mass(*arguments, enlarged=False),
            missed_mass(*arguments, enlarged=True),
        )

    def rows_read(self, given: Retrieved) -> tuple[int, int]:
        """Cold keys and values that had to be read (SPEC 9.6)."""
        if not self.members:
            return 0, 0
        if given.streamed:
            cold = sum(page.count for page in self.head.pages.values())
            return cold, cold
        return sum(self.head.pages[j].count for j in given.candidates), len(given.selected)


def masses(terms: Sequence[Term], sink: float) -> tuple[float, float]:
    """Exact and estimated share (SPEC 6.1)."""
    exact = log_sum_exp([*(t.logit for t in terms if t.kind == "token"), sink])
    estimated = log_sum_exp(t.logit for t in terms if t.kind != "token")
    return share(exact, [exact, estimated]), share(estimated, [exact, estimated])


@dataclass
class OracleStore:
    """Tokens of a store as nested lists: keys ``[B][H][T][D]``, values ``[B][H][T][DV]``, validity ``[B][T]``."""

    config: KIVConfig
    keys: list[list[list[Vector]]] = field(default_factory=list)
    values: list[list[list[Vector]]] = field(default_factory=list)
    valid: list[list[bool]] = field(default_factory=list)
    pending: int = 0

    @property
    def length(self) -> int:
        """T."""
        return len(self.valid[0]) if self.valid else 0

    def append(
        self, keys: list[list[list[Vector]]], values: list[list[list[Vector]]], valid: list[list[bool]] | None
    ) -> None:
        """SPEC 9.1."""
        n = len(keys[0][0])
        if not self.valid:
            self.keys = [[[] for _ in sequence] for sequence in keys]
            self.values = [[[] for _ in sequence] for sequence in values]
            self.valid = [[] for _ in keys]
        for b, sequence in enumerate(keys):
            for h, tokens in enumerate(sequence):
                self.keys[b][h].extend(tokens)
                self.values[b][h].extend(values[b][h])
            self.valid[b].extend([True] * n if valid is None else valid[b])
        self.pending = n

    def crop(self, length: int) -> None:
        """SPEC 9.2."""
        self.keys = [[tokens[:length] for tokens in sequence] for sequence in self.keys]
        self.values = [[tokens[:length] for tokens in sequence] for sequence in self.values]
        self.valid = [flags[:length] for flags in self.valid]
        self.pending = 0

    def select(self, rows: Sequence[int]) -> None:
        """SPEC 9.3."""
        self.keys = [[list(tokens) for tokens in self.keys[row]] for row in rows]
        self.values = [[list(tokens) for tokens in self.values[row]] for row in rows]
        self.valid = [list(self.valid[row]) for row in rows]

    def fork(self) -> OracleStore:
        """SPEC 9.4."""
        copy = OracleStore(self.config, self.keys, self.values, self.valid, self.pending)
        copy.select(range(len(self.valid)))
        return copy

    def reset(self) -> None:
        """SPEC 9.5."""
        self.keys, self.values, self.valid, self.pending = [], [], [], 0

    def parts(self) -> tuple[int, int, int]:
        """Sinks, hot and cold positions for the next call (SPEC 2.2)."""
        sinks = min(self.config.sink_tokens, self.length)
        cold = Head(self.config, [], [], [], self.length).cold_pages * self.config.page_tokens
        return sinks, self.length - sinks - cold, cold

    def blocks(self) -> list[Block]:
        """The query blocks of the call that is due (SPEC 7)."""
        c, stop = self.config, self.length
        first = stop - self.pending
        if c.retrieve_tokens is None:
            return [Block("exact", first, stop)]
        if self.pending == 1:
            return [Block("retrieve", first, stop)]
        if c.prefill == "exact":
            return [Block("exact", first, stop)]
        suffix = min(self.pending, c.exact_suffix_tokens)
        blocks: list[Block] = []
        while first < stop - suffix:
            end = min(first + c.query_block_tokens, stop - suffix)
            blocks.append(Block(c.prefill, first, end))
            first = end
        return [*blocks, Block("exact", first, stop)] if suffix else blocks

    def head_blocks(
        self,
        block: Block,
        query: list[list[list[Vector]]],
        modifiers: Modifiers,
        sinks: list[list[list[float]]] | None,
    ) -> list[list[HeadBlock]]:
        """``[B][H]``, for the call's queries ``[B][HQ][TQ]`` and sink logits of the same shape."""
        first = self.length - self.pending
        groups = len(query[0]) // len(self.keys[0])
        result: list[list[HeadBlock]] = []
        for b, flags in enumerate(self.valid):
            row: list[HeadBlock] = []
            for h, keys in enumerate(self.keys[b]):
                head = Head(self.config, keys, self.values[b][h], flags, block.start)
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
