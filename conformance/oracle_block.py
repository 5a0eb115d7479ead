"""The second oracle's query blocks: what one sequence and KV head of a call is computed from (SPEC 4 to 6)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from .oracle import Head, Modifiers, Term
from .oracle_mass import FACTORS, Asked, enough, missed_mass, true_missed
from .oracle_numbers import Vector, log_sum_exp, share
from .oracle_shift import Shift

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    widened: bool = False


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

    @property
    def asked(self) -> Asked:
        """Query, position and sink logit of the members."""
        return [(q, at, sink) for _, at, q, sink in self.members]

    def retrieve(self) -> Retrieved:
        """Retrieve (SPEC 4 and 6.3)."""
        if self.block.mode != "retrieve" or not self.members:
            return Retrieved([], [], self.block.mode == "exact")
        ranked = self.head.rank(self.vectors, self.modifiers.scale)
        if self.head.config.max_missed_mass is None:
            return self.taken(ranked, 0)
        for factor in FACTORS:
            found = self.taken(ranked, factor)
            if self.enough(found):
                return found
        return Retrieved([], [], True)

    def taken(self, ranked: Sequence[int], factor: int) -> Retrieved:
        """Return candidates and selection with C' = `factor` times C, from the positions best first (SPEC 4.9, 6.3)."""
        most = self.head.config.candidate_tokens
        if factor:
            whole = sorted(ranked[: factor * most])
            return Retrieved(whole, whole, False)
        selected = self.head.select(self.vectors, ranked[:most], self.modifiers.scale)
        late = set(selected).difference(ranked[: self.early])
        if len(ranked) <= most or not self.too_late(len(late)):
            return Retrieved(sorted(ranked[:most]), selected, False)
        twice = sorted(ranked[: 2 * most])
        return Retrieved(twice, self.head.select(self.vectors, twice, self.modifiers.scale), False, widened=True)

    @property
    def early(self) -> int:
        """C₃ (SPEC 4.9)."""
        return 3 * self.head.config.candidate_tokens // 4

    def too_late(self, late: int) -> bool:
        """Say whether `late` tokens that come late widen a selection from more than C (SPEC 4.9)."""
        chosen = self.head.config.retrieve_tokens or 0
        return late > chosen / 16 + max(0, chosen - self.early)

    def enough(self, found: Retrieved, enlarged: bool | None = None) -> bool:
        """Say whether no member may miss more than the limit (SPEC 6.3); `enlarged` as in `oracle_mass`."""
        return enough(self.head, self.asked, found.candidates, found.selected, self.modifiers, enlarged)

    def shift(self, given: Retrieved) -> Shift:
        """Return the shift of mean values, by the selection (SPEC 5.4)."""
        return Shift(self.head, self.vectors, given.selected, self.modifiers)

    def terms(self, query: Vector, at: int, given: Retrieved, shift: Shift) -> list[Term]:
        """Return the summands of one query's softmax."""
        if given.streamed:
            tokens = [i for i in range(at + 1) if self.head.valid[i]]
            logits = self.head.logits(query, tokens, self.modifiers)
            return [Term(logit, self.head.values[i], (i,)) for i, logit in zip(tokens, logits, strict=True)]
        tail = self.block.mode == "retrieve" and self.head.config.tail == "mean"
        terms = self.head.terms(query, at, given.candidates, given.selected, tail, self.modifiers)
        return shift.applied(query, terms)

    def bounds(self, query: Vector, at: int, sink: float, given: Retrieved) -> tuple[float, float, float]:
        """Return the true missed share, the missed bound, and the bound enlarged as far as it may be (SPEC 6.2)."""
        if given.streamed:
            return 0.0, 0.0, 0.0
        arguments = (self.head, (query, at, sink), given.candidates, given.selected, self.modifiers)
        return (
            true_missed(self.head, query, at, sink, given.selected, self.modifiers),
            missed_mass(*arguments, enlarged=False),
            missed_mass(*arguments, enlarged=True),
        )

    def rows_read(self, given: Retrieved) -> tuple[int, int]:
        """Count cold keys and values that had to be read (SPEC 9.6)."""
        if not self.members:
            return 0, 0
        if given.streamed:
            cold = len(self.head.page_at)
            return cold, cold
        return len(given.candidates), len(given.selected)


def masses(terms: Sequence[Term], sink: float) -> tuple[float, float]:
    """Return the exact and the estimated share (SPEC 6.1)."""
    exact = log_sum_exp([*(t.logit for t in terms if t.page is None), sink])
    estimated = log_sum_exp(t.logit for t in terms if t.page is not None)
    return share(exact, [exact, estimated]), share(estimated, [exact, estimated])
