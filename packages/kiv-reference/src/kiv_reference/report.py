"""What `attend` says it did (SPEC 9.6) and what a store holds (SPEC 10.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import torch

Mode = Literal["exact", "retrieve", "window"]


class TierBytes(NamedTuple):
    """Bytes held in each tier (SPEC 10.3)."""

    device: int
    ram: int
    disk: int


class TierTokens(NamedTuple):
    """Positions in each part of the partition; they sum to the length of the store (SPEC 2.2, 10.3)."""

    sinks: int
    hot: int
    cold_ram: int
    cold_disk: int


@dataclass(frozen=True)
class BlockReport:
    """What one query block of a call did.

    Attributes
    ----------
    mode : "exact", "retrieve" or "window"
    first_query : int
        Position of the block's first query.
    query_tokens : int
        Queries in the block, TQ below.
    cold_pages : int
        N, the cold pages of the block's partition (SPEC 2.2).
    candidate_positions : int64 [B, H, C]
        Candidates, ascending (SPEC 4.4, 4.9, 6.3); -1 fills up rows. Width 0 unless mode is "retrieve".
    selected_positions : int64 [B, H, R]
        Selected positions, ascending (SPEC 4.6, 6.3); -1 fills up rows. Width 0 unless mode is "retrieve".
    widened : bool [B, H]
        Where the estimates ranked so badly that twice as many candidates were read (SPEC 4.9).
    streamed : bool [B, H]
        Where every token was attended exactly: everywhere in mode "exact", and by SPEC 6.3.
    exact_mass, estimated_mass : float32 [B, HQ, TQ]
        Shares of the softmax mass (SPEC 6.1).
    missed_bound : float32 [B, HQ, TQ], or None
        Upper bound on the share of mass left out (SPEC 6.2); None if it was not asked for.
    key_bytes, value_bytes : int
        Cold bytes that had to be read (SPEC 9.6).
    kept_bytes : int
        Those of them that a device had kept, and did not read from RAM.
    """

    mode: Mode
    first_query: int
    query_tokens: int
    cold_pages: int
    candidate_positions: torch.Tensor
    selected_positions: torch.Tensor
    widened: torch.Tensor
    streamed: torch.Tensor
    exact_mass: torch.Tensor
    estimated_mass: torch.Tensor
    missed_bound: torch.Tensor | None
    key_bytes: int
    value_bytes: int
    kept_bytes: int = 0


@dataclass(frozen=True)
class AttendReport:
    """What one call of `attend` did: one entry for each query block, in order of position."""

    blocks: tuple[BlockReport, ...]

    @property
    def key_bytes(self) -> int:
        """Cold key bytes that the call had to read."""
        return sum(block.key_bytes for block in self.blocks)

    @property
    def value_bytes(self) -> int:
        """Cold value bytes that the call had to read."""
        return sum(block.value_bytes for block in self.blocks)

    @property
    def kept_bytes(self) -> int:
        """Those of both that a device had kept, and did not read from RAM."""
        return sum(block.kept_bytes for block in self.blocks)

    @property
    def widened(self) -> int:
        """Pairs of block and of sequence and KV head whose candidates were doubled (SPEC 4.9)."""
        return sum(int(b.widened.sum()) for b in self.blocks)

    @property
    def streamed(self) -> int:
        """Pairs of sequence and KV head that `max_missed_mass` sent to exact attention (SPEC 6.3)."""
        return sum(int(b.streamed.sum()) for b in self.blocks if b.mode == "retrieve")
