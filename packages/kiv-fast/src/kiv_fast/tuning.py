"""How much is done at once: sizes that change the speed and the memory of a pool, never its results."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tuning:
    """Sizes of one pool. The ones it ships with were measured; tests give small ones to reach every border.

    Attributes
    ----------
    tile_tokens : int
        Tokens that exact attention takes at once.
    tile_bytes : int
        Bytes of keys and values, in all heads, that a device takes at once; at least a page, at most `tile_tokens`.
    query_chunk : int
        Queries at once where exact attention writes logits out.
    index_tokens : int
        Tokens whose codes are made at once in a long call.
    chunk_bytes : int
        Bytes of candidates' keys that are read and multiplied at a time, and of pages' codes, in the dtype of
        computation.
    kept_bytes : int
        Estimates of a block that take no more are kept from one use to the next by torch's operations, not computed
        again.
    together_bytes : int, optional
        Temporary numbers of query blocks, and sequences, that torch's operations answer in the same launches; one block
        of one sequence at least. None is 512 MiB on a device, by reckoning and not measured, and 0, each block for
        itself, on a CPU, whose cache is small and whose launches cost little.
    device_row_steps : float
        Keys and values that a device keeps of those its steps read from RAM, as many as this number of steps of a store
        reads, if `device_bytes` has room for them.
    graphs : bool
        Whether a device launches the kernels of a step as one graph, where it can.
    row_steps : int
        Keys and values that are read from disk are kept in RAM, as many as this number of steps of a store reads.
    row_share : int
        All of them take at most one part in this many of `ram_bytes`; none are kept where `disk_bytes` sets a limit,
        since pages that give way to them go to disk.
    """

    tile_tokens: int = 8192
    tile_bytes: int = 16 << 20
    query_chunk: int = 256
    index_tokens: int = 2048
    chunk_bytes: int = 32 << 20
    kept_bytes: int = 8 << 20
    together_bytes: int | None = None
    device_row_steps: float = 2.0
    graphs: bool = True
    row_steps: int = 4
    row_share: int = 8

    def together(self, device: torch.device) -> int:
        """Return `together_bytes` on a device."""
        if self.together_bytes is None:
            return 0 if device.type == "cpu" else 512 << 20
        return self.together_bytes
